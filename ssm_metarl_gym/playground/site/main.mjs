// The page: controls, keys, and the loop that steps and draws both runs.

import { readBundle, sha256 } from "./bundle.mjs";
import { drawChart, short } from "./charts.mjs";
import { drawScene } from "./drawing.mjs";
import { find, make, makeSlider } from "./elements.mjs";
import { CORRUPTIONS, Experiment } from "./experiment.mjs";
import { FAMILIES, knownValues } from "./families.mjs";

const CAPACITY = 300; // steps on a chart
const TRAIL = 30; // positions that are shown of a point
const KEYS_OF_MOTORS = ["F", "G"];
const COLOURS = ["ink", "soft", "line", "card", "as-is", "corrected", "reference", "good", "distance", "shade"];
const CORRUPTION_WORDS = {
  outliers: "100 times too large",
  NaN: "not a number",
  stuck: "stuck",
  late: "a step late",
};

/** What a motor of a family is called in a sentence. */
const nameMotor = ({ motors }, i) => (motors.length > 1 ? motors[i] : `the ${motors[i]}`);

const page = {
  family: FAMILIES[0],
  values: {},
  sensors: { noise: 0, kind: "outliers", share: 0 },
  isRunning: true,
  speed: 1,
  experiment: null,
  history: null,
};
const bundles = new Map();
let colours = {};
let wanted = null;

// Loading.

async function fetchFile(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} cannot be loaded: ${response.status} ${response.statusText}.`);
  return response;
}

/** The bundle of a family, which must be the one that the list names. */
async function loadBundle(name) {
  if (!bundles.has(name)) {
    const listed = (await (await fetchFile("bundles.json")).json())[name];
    const buffer = await (await fetchFile(listed.file)).arrayBuffer();
    const digest = await sha256(buffer);
    if (digest !== null && digest !== listed.sha256) throw new Error(`${listed.file} is damaged. Load the page again.`);
    bundles.set(name, readBundle(buffer));
  }
  return bundles.get(name);
}

async function chooseFamily(family) {
  wanted = family;
  try {
    const bundle = await loadBundle(family.name);
    if (wanted !== family) return; // another one was chosen while this one was loaded
    page.family = family;
    page.values = knownValues(family);
    page.experiment = new Experiment(family.Physics, bundle);
    page.history = { rows: [] };
    find(`task-${family.name}`).checked = true;
    showFlips();
    showSliders();
    applySensors();
    beginEpisode();
    find("problem").hidden = true;
    document.body.dataset.ready = family.name;
  } catch (error) {
    find("problem").textContent = `Something went wrong: ${error.message}`;
    find("problem").hidden = false;
    if (page.experiment) find(`task-${page.family.name}`).checked = true; // which goes on
    throw error;
  }
}

// Stepping.

function beginEpisode() {
  page.experiment.restart();
  page.trails = page.experiment.sides.map(({ physics }) => [physics.state.slice(0, 2)]);
  page.lastFalls = [-Infinity, -Infinity];
  page.pendingMark = page.history.rows.length ? { colour: "line", text: "" } : null;
  draw();
}

function stepOnce() {
  const { experiment, history, family } = page;
  if (experiment.numSteps >= family.episodeLength) beginEpisode();
  const falls = experiment.sides.map(({ numFalls }) => numFalls);
  experiment.step();
  experiment.sides.forEach((side, i) => {
    if (side.numFalls > falls[i]) page.lastFalls[i] = experiment.numSteps;
    page.trails[i] = [...page.trails[i], side.physics.state.slice(0, 2)].slice(-TRAIL);
  });
  const { correction } = experiment.sides[1];
  const { latest, adapted } = correction.online;
  history.rows.push({
    adaptedError: latest && latest.error,
    referenceError: correction.latestReferenceError,
    isOpen: correction.isOpen,
    distance: adapted.distance,
    returns: experiment.sides.map(returnOf),
    mark: page.pendingMark,
  });
  history.rows.splice(0, history.rows.length - CAPACITY);
  page.pendingMark = null;
  announceGate(correction.isOpen);
}

const returnOf = ({ rewards }) => rewards.reduce((sum, one) => sum + one, 0);

let lastTime = null;
let owed = 0;
function frame(time) {
  const elapsed = lastTime === null ? 0 : Math.min(time - lastTime, 200);
  lastTime = time;
  if (page.isRunning && page.experiment) {
    owed += (elapsed / 1000) * page.speed * page.family.stepsPerSecond;
    if (owed >= 1) {
      for (; owed >= 1; owed--) stepOnce();
      draw();
    }
  }
  requestAnimationFrame(frame);
}

// Acting.

function applyTask() {
  page.experiment.setTask(page.family.toTask(page.values));
}

function flip(i) {
  const { motors } = page.family;
  if (i >= motors.length || !page.experiment) return;
  const name = `reversed${i}`;
  page.values[name] = !page.values[name];
  applyTask();
  const text = page.values[name] ? "reversed" : "put right";
  page.pendingMark = { colour: "motor", text: `${motors.length > 1 ? `${motors[i]} ` : ""}${text}` };
  showFlips();
  say(`${nameMotor(page.family, i)} is ${text} now.`);
  draw();
}

function setRunning(isRunning) {
  page.isRunning = isRunning;
  find("pause").replaceChildren(isRunning ? "Pause " : "Run ", make("kbd", {}, "space"));
}

function applySensors() {
  const { noise, kind, share } = page.sensors;
  if (page.experiment) Object.assign(page.experiment, { noise, corruption: { kind, share } });
}

/** Tell a screen reader. */
function say(text) {
  find("said").textContent = text;
}

let wasOpen = false;
let lastSaid = -Infinity;
function announceGate(isOpen) {
  // Seldom enough that it can be heard.
  if (isOpen === wasOpen || performance.now() - lastSaid < 2500) return;
  wasOpen = isOpen;
  lastSaid = performance.now();
  say(isOpen ? "The correction corrects." : "The correction leaves the policy alone.");
}

// Showing.

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  colours.motor = style.getPropertyValue("--motor").trim();
}

function draw() {
  const { experiment, family, values } = page;
  const { sides, numSteps } = experiment;
  const reversed = family.motors.filter((_, i) => values[`reversed${i}`]);
  sides.forEach((side, i) => {
    const hasFallen = numSteps - page.lastFalls[i] < 12;
    const wrong = reversed.length ? `${reversed.join(" and ")} reversed` : "";
    find(`wrong-${i}`).textContent = hasFallen ? "fell: another try" : wrong;
    const scene = { state: side.physics.state, task: experiment.task, taken: numSteps ? side.taken : null };
    drawScene(
      find(`scene-${i}`),
      family.name,
      { ...scene, trail: page.trails[i] },
      { ...colours, side: colours[i ? "corrected" : "as-is"] },
    );
    find(`action-${i}`).textContent = numSteps
      ? `asks for ${family.nameAction(side.asked)}, takes ${family.nameAction(side.taken)}`
      : "";
    find(`return-${i}`).textContent = returnOf(side).toFixed(1);
    find(`falls-${i}`).textContent = family.name === "cartpole" ? `falls: ${side.numFalls}` : "";
  });
  const { isOpen } = sides[1].correction;
  find("gate").classList.toggle("open", isOpen);
  find("status-1").textContent = isOpen ? "corrects" : "leaves the policy alone";
  find("clock").textContent = `step ${numSteps} of ${family.episodeLength}`;
  drawCharts();
}

function drawCharts() {
  const { rows } = page.history;
  const column = (read) => rows.map(read);
  const marks = rows.flatMap(({ mark }, index) => (mark ? [{ ...mark, index, colour: colours[mark.colour] }] : []));
  const shaded = column(({ isOpen }) => isOpen);
  const common = { capacity: CAPACITY, marks };
  const unmarked = marks.map((mark) => ({ ...mark, text: "" }));
  const chart = (name, settings, words) => {
    const canvas = find(`chart-${name}`);
    drawChart(canvas, { ...common, ...settings }, colours);
    canvas.setAttribute("aria-label", words);
  };
  const latest = rows.at(-1);
  const told = (value) => (value === null || value === undefined || !Number.isFinite(value) ? "unknown" : short(value));
  chart(
    "error",
    {
      lines: [
        { values: column(({ referenceError }) => referenceError), colour: colours.reference },
        { values: column(({ adaptedError }) => adaptedError), colour: colours.corrected },
      ],
      shaded,
      range: [1e-5, 100],
      isLogarithmic: true,
    },
    `Errors: of the model that adapts ${told(latest?.adaptedError)}, of the other ${told(latest?.referenceError)}`,
  );
  chart(
    "distance",
    {
      lines: [{ values: column(({ distance }) => distance), colour: colours.distance }],
      range: [0, 0.1],
      marks: unmarked,
    },
    `Distance of the weights: ${told(latest?.distance)}`,
  );
  chart(
    "return",
    {
      lines: ["as-is", "corrected"].map((name, i) => ({
        values: column(({ returns }) => returns[i]),
        colour: colours[name],
      })),
      range: [0, 1],
      marks: unmarked,
    },
    `Returns: as it is ${told(latest?.returns[0])}, corrected ${told(latest?.returns[1])}`,
  );
}

function showFlips() {
  const buttons = page.family.motors.map((_, i) => {
    const name = nameMotor(page.family, i);
    const isReversed = page.values[`reversed${i}`];
    const key = KEYS_OF_MOTORS[i];
    const button = find(`flip-${i}`) ?? make("button", { type: "button", id: `flip-${i}`, "aria-keyshortcuts": key });
    button.onclick = () => flip(i);
    button.replaceChildren(isReversed ? `Put ${name} right ` : `Reverse ${name} `, make("kbd", {}, key));
    button.classList.toggle("reversed", isReversed);
    return button;
  });
  const bar = find("flips");
  // What has the focus must not be taken off the page.
  if (buttons.length !== bar.children.length || buttons.some((button, i) => button !== bar.children[i])) {
    bar.replaceChildren(...buttons);
  }
}

function showSliders() {
  const sliders = page.family.sliders.map((slider) => {
    const note = (write) => `trained with ${write(slider.known)}`;
    return makeSlider({ ...slider, id: `slider-${slider.name}`, note }, page.values[slider.name], (value) => {
      page.values[slider.name] = value;
      applyTask();
      page.pendingMark ??= { colour: "soft", text: "" };
      draw();
    });
  });
  find("sliders").replaceChildren(...sliders);
}

function showSensors() {
  const { sensors } = page;
  const noise = { id: "slider-noise", label: "Noise on the readings", unit: "", low: 0, high: 0.05, step: 0.005 };
  const share = { id: "slider-share", label: "Faulty readings (model only)", unit: "%", low: 0, high: 50, step: 5 };
  const select = make("select", { id: "kind" });
  for (const kind of Object.keys(CORRUPTIONS)) select.append(make("option", { value: kind }, CORRUPTION_WORDS[kind]));
  select.addEventListener("change", () => {
    sensors.kind = select.value;
    applySensors();
  });
  find("sensors").replaceChildren(
    makeSlider(noise, sensors.noise, (value) => {
      sensors.noise = value;
      applySensors();
    }),
    makeSlider(share, 100 * sensors.share, (value) => {
      sensors.share = value / 100;
      applySensors();
    }),
    make("label", { class: "toggle" }, "They are", select),
  );
}

// Starting.

function step() {
  if (!page.experiment) return;
  setRunning(false);
  stepOnce();
  draw();
}

const ACTIONS = {
  f: () => flip(0),
  g: () => flip(1),
  s: step,
  r: () => page.experiment && beginEpisode(),
  " ": () => setRunning(!page.isRunning),
};
FAMILIES.forEach((family, i) => (ACTIONS[String(i + 1)] = () => chooseFamily(family)));

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { tagName } = event.target;
  // Of a button or a list the space key is its own, and letters choose in a list.
  if (tagName === "SELECT" || (event.key === " " && ["BUTTON", "INPUT"].includes(tagName))) return;
  const act = ACTIONS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

function start() {
  for (const family of FAMILIES) {
    const input = make("input", { type: "radio", name: "task", id: `task-${family.name}` });
    input.addEventListener("change", () => chooseFamily(family));
    find("tasks").append(make("label", {}, input, family.title, make("span", { class: "what" }, `: ${family.goal}`)));
  }
  showSensors();
  find("pause").onclick = ACTIONS[" "];
  find("step").onclick = ACTIONS.s;
  find("restart").onclick = ACTIONS.r;
  find("speed").onchange = (event) => (page.speed = Number(event.target.value));
  find("default").onclick = () => {
    if (!page.experiment) return;
    page.values = knownValues(page.family);
    applyTask();
    showFlips();
    showSliders();
    page.pendingMark = { colour: "soft", text: "as trained" };
    draw();
  };
  document.addEventListener("keydown", onKey);
  document.addEventListener("submit", (event) => event.preventDefault());
  const redraw = () => {
    readColours();
    if (page.experiment) draw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", redraw);
  readColours();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) setRunning(false);
  requestAnimationFrame(frame); // which waits for a family: the first one that can be loaded
  chooseFamily(FAMILIES[0]);
}

start();
