// Plays an episode as the page does, twice: from the states that Python's went through, which it prints step by step, and
// from the first of them alone, of which it prints the return. test_page.py compares both with Python's.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { site, bundle, physics, task, states, changes, wrong } = JSON.parse(readFileSync(0, "utf8"));
const load = (name) => import(pathToFileURL(`${site}/${name}`));
const families = await load("physics.mjs");
const { readBundle } = await load("bundle.mjs");
const { Side, CORRUPTIONS } = await load("experiment.mjs");

const file = readFileSync(bundle);
const read = readBundle(file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength));

function play(isGuided) {
  const side = new Side(families[physics], read, true);
  side.physics.task = { ...side.physics.task, ...task };
  side.begin(states[0]);
  let before = null;
  let numChanges = 0;
  const corrupt = (change) => {
    const earlier = before ?? change;
    before = change;
    const kind = wrong[numChanges++];
    return kind ? CORRUPTIONS[kind](change, earlier) : change;
  };
  const steps = [];
  for (let i = 0; i + 1 < states.length; i++) {
    if (changes[i]) side.physics.task = { ...side.physics.task, ...changes[i] };
    if (isGuided) {
      side.physics.state = [...states[i]];
      side.observation = side.physics.observe();
    }
    side.step({ drawState: () => [...states[i + 1]], corrupt });
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
  return steps;
}

const total = (steps) => steps.reduce((sum, { reward }) => sum + reward, 0);
process.stdout.write(JSON.stringify({ steps: play(true), total: total(play(false)) }));
