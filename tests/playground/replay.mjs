// Plays an episode as the page does, and prints what happened in JSON; test_page.py compares it with Python's.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { site, bundle, physics, task, start, restarts, numSteps, changes, wrong } = JSON.parse(readFileSync(0, "utf8"));
const load = (name) => import(pathToFileURL(`${site}/${name}`));
const families = await load("physics.mjs");
const { readBundle } = await load("bundle.mjs");
const { Side, CORRUPTIONS } = await load("experiment.mjs");

const file = readFileSync(bundle);
const read = readBundle(file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength));
const side = new Side(families[physics], read, true);
side.physics.task = { ...side.physics.task, ...task };
side.begin(start);
let before = null;
let numChanges = 0;
const steps = [];
for (let i = 0; i < numSteps; i++) {
  if (changes[i]) side.physics.task = { ...side.physics.task, ...changes[i] };
  const corrupt = (change) => {
    const earlier = before ?? change;
    before = change;
    const kind = wrong[numChanges++];
    return kind ? CORRUPTIONS[kind](change, earlier) : change;
  };
  side.step({ drawState: () => restarts.shift(), corrupt });
  const { online, isOpen, adaptedError, referenceError, effect } = side.correction;
  steps.push({
    observation: side.observation,
    reward: side.rewards.at(-1),
    asked: side.asked,
    taken: side.taken,
    gate_open: isOpen,
    adapted_error: adaptedError,
    reference_error: referenceError,
    effect,
    error: online.latest && online.latest.error,
    distance: online.adapted.distance,
    steps: online.adapted.numSteps,
    source_used: online.fallback.used,
    num_transitions: online.window.transitions.length,
    num_outliers: online.counts.outliers,
    num_suspicions: online.counts.suspicions,
    num_changes: online.counts.changes,
  });
}
process.stdout.write(JSON.stringify(steps));
