// Two episodes side by side: the same policy from the same start in the same physics, as it is and corrected.

import { ActionCorrection } from "./correction.mjs";
import { Random } from "./numbers.mjs";

/** What becomes of some of the changes that the model learns from, as of a sensor that fails (CorruptedModel). */
export const CORRUPTIONS = {
  outliers: (change) => change.map((value) => 100 * value),
  NaN: (change) => change.map(() => NaN),
  stuck: (change) => change.map(() => 0),
  late: (_, before) => before,
};

/** A policy in an environment, behind the wrappers or not. */
export class Side {
  /**
   * @param {object} Physics A class of physics.mjs.
   * @param {object} bundle What readBundle gave.
   * @param {boolean} isCorrected Whether its actions are corrected.
   */
  constructor(Physics, bundle, isCorrected) {
    this.physics = new Physics();
    this.policy = bundle.policy;
    this.correction = isCorrected ? new ActionCorrection(bundle) : null;
  }

  /** Begin an episode in a state. */
  begin(state, addNoise = (seen) => seen) {
    this.physics.state = [...state];
    this.observation = addNoise(this.physics.observe());
    this.correction?.begin();
    this.rewards = [];
    this.numFalls = 0;
  }

  /**
   * Take a step.
   *
   * @param {function} drawState Where an attempt starts after a failure.
   * @param {function} addNoise What is seen of an observation.
   * @param {function} corrupt What becomes of the change that the model learns from.
   */
  step({ drawState, addNoise = (seen) => seen, corrupt }) {
    const { physics, policy, correction, observation } = this;
    this.asked = policy.act(observation);
    this.taken = correction ? correction.act(observation, this.asked) : this.asked;
    const { reward, failed } = physics.step(this.taken);
    if (failed) physics.state = drawState();
    this.observation = addNoise(physics.observe());
    this.numFalls += failed;
    this.rewards.push(reward);
    correction?.advance(observation, this.taken, this.observation, { restarted: failed, corrupt });
  }
}

/** Both sides, and what a person sets. */
export class Experiment {
  constructor(Physics, bundle, seed = 0) {
    this.Physics = Physics;
    this.sides = [false, true].map((isCorrected) => new Side(Physics, bundle, isCorrected));
    this.noise = 0;
    this.corruption = { kind: "outliers", share: 0 };
    this.seed = seed;
    this.setTask({});
    this.restart();
  }

  /** Change some parameters of the physics, from the next step on. */
  setTask(changes) {
    this.task = { ...this.Physics.defaultTask, ...this.task, ...changes };
    for (const { physics } of this.sides) physics.task = this.task;
  }

  /** Begin a new episode from another start, in the same physics. */
  restart() {
    this.seed += 1;
    this.numSteps = 0;
    const starts = new Random(this.seed);
    const state = this.Physics.drawState(starts.uniform);
    const fallen = starts.state;
    this.streams = this.sides.map((_, i) => ({
      starts: new Random(fallen),
      noise: new Random(1_000_003 * this.seed + 1),
      corruption: new Random(1_000_003 * this.seed + 2 + i),
    }));
    this.change = null;
    this.sides.forEach((side, i) => side.begin(state, this.#noiseOf(i)));
  }

  step() {
    this.numSteps += 1;
    this.sides.forEach((side, i) => {
      const drawState = () => this.Physics.drawState(this.streams[i].starts.uniform);
      side.step({ drawState, addNoise: this.#noiseOf(i), corrupt: this.#corrupt });
    });
  }

  #noiseOf(i) {
    const stream = this.streams[i].noise;
    return (seen) => (this.noise ? seen.map((value) => Math.fround(value + this.noise * stream.normal())) : seen);
  }

  #corrupt = (change) => {
    const before = this.change ?? change;
    this.change = change;
    const { kind, share } = this.corruption;
    return this.streams[1].corruption.uniform() < share ? CORRUPTIONS[kind](change, before) : change;
  };
}
