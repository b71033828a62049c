// What Adapter and OnlineAdaptation do: keep the last layer of a model fitted to the latest transitions, within bounds.

const SURPRISES_OF_A_CHANGE = 3;
const SINGLE_PRECISION = 2 ** -23;

const meanSquare = (a, b) => a.reduce((sum, one, i) => sum + (one - b[i]) ** 2, 0) / a.length;
const norm = (values) => Math.sqrt(values.reduce((sum, one) => sum + one * one, 0));

/** The last layer of a model, which takes a few clipped gradient steps at a time and never leaves a ball (Adapter). */
export class AdaptedHead {
  constructor(model, { lr, gradClipNorm, trustRegionEps, maxStepsPerCall }) {
    this.model = model;
    this.bounds = { lr, gradClipNorm, maxStepsPerCall };
    this.numWeights = model.head.weight.length;
    this.source = Float64Array.from([...model.head.weight, ...model.head.bias]);
    this.sourceNorm = norm(this.source);
    this.radius = trustRegionEps * this.sourceNorm;
    this.rounding = SINGLE_PRECISION * (this.sourceNorm + this.radius);
    this.reset();
  }

  reset() {
    this.weights = Float64Array.from(this.source);
    this.distance = 0;
    this.numSteps = 0;
  }

  predict(encoded) {
    const head = { weight: this.weights.subarray(0, this.numWeights), bias: this.weights.subarray(this.numWeights) };
    return this.model.predict(encoded, head);
  }

  /** Take the steps of one call on transitions, each of features and targets. */
  adapt(transitions) {
    for (let step = 0; step < this.bounds.maxStepsPerCall; step++) {
      const moved = this.#step(this.#gradient(transitions));
      // A step that leads to anything that is not finite is not taken.
      if (!moved.weights.every(Number.isFinite)) return;
      this.weights = moved.weights;
      this.distance = this.sourceNorm ? moved.distance / this.sourceNorm : 0;
      this.numSteps += 1;
    }
  }

  /** Of the mean squared error over all transitions and components. */
  #gradient(transitions) {
    const gradient = new Float64Array(this.weights.length);
    for (const { encoded, target } of transitions) {
      const predicted = this.predict(encoded);
      predicted.forEach((value, i) => {
        const slope = (2 * (value - target[i])) / (transitions.length * target.length);
        for (let j = 0; j < encoded.length; j++) gradient[i * encoded.length + j] += slope * encoded[j];
        gradient[this.numWeights + i] += slope;
      });
    }
    return gradient;
  }

  #step(gradient) {
    const slope = norm(gradient);
    const clipped = slope > this.bounds.gradClipNorm;
    const lr = this.bounds.lr * (clipped ? this.bounds.gradClipNorm / slope : 1);
    let weights = this.weights.map((weight, i) => weight - lr * gradient[i]);
    let distance = norm(weights.map((weight, i) => weight - this.source[i]));
    if (distance > this.radius) {
      const share = Math.max(this.radius - this.rounding, 0) / distance;
      weights = weights.map((weight, i) => this.source[i] + share * (weight - this.source[i]));
      distance = norm(weights.map((weight, i) => weight - this.source[i]));
    }
    return { weights, distance };
  }
}

/** The last transitions, and those that are held back until the next ones tell what they are. */
export class Window {
  constructor(adapted, { window, every, warmup }) {
    this.adapted = adapted;
    this.options = { window, every, warmup };
    this.begin();
  }

  begin() {
    this.adapted.reset();
    this.transitions = [];
    this.heldBack = [];
    this.numSteps = 0;
  }

  /** Keep a transition as the verdict on it says, null for none, and adapt where it is time to. */
  advance(transition, verdict) {
    this.numSteps += 1;
    if (transition && verdict.suspicion) {
      this.heldBack = [...this.heldBack, transition].slice(1 - SURPRISES_OF_A_CHANGE);
    }
    if (verdict.change) {
      this.transitions = [...this.heldBack];
      this.adapted.reset();
    }
    if (transition && !verdict.suspicion && !verdict.outlier) {
      this.transitions = [...this.transitions, transition].slice(-this.options.window);
    }
    const { warmup, every } = this.options;
    const isDue = this.transitions.length >= warmup && this.numSteps % every === 0;
    if (isDue) this.adapted.adapt(this.transitions);
  }
}

/** Tells outliers and changes of the physics apart by how much they surprise a model (Surprises). */
export class Surprises {
  constructor({ outlierError, changeRatio, errorStart, errorDecay, errorFloor }) {
    this.options = { outlierError, changeRatio, errorStart, errorDecay, errorFloor };
    this.forget();
  }

  forget() {
    this.mean = this.options.errorStart;
    this.numSuspected = 0;
    this.isTrusted = false;
  }

  judge(error) {
    const { outlierError, changeRatio, errorStart, errorDecay, errorFloor } = this.options;
    const outlier = !(Number.isFinite(error) && error <= outlierError);
    if (outlier) return { outlier, suspicion: false, change: false };
    const surprise = error > changeRatio * this.mean;
    const change = surprise && this.numSuspected === SURPRISES_OF_A_CHANGE - 1;
    const suspicion = surprise && this.isTrusted && !change;
    if (!surprise) {
      const counted = Math.min(error, 3 * this.mean);
      this.mean = Math.max(errorFloor, errorDecay * this.mean + (1 - errorDecay) * counted);
    } else if (!suspicion) {
      this.mean = Math.max(change ? errorStart : this.mean, error / changeRatio);
    }
    this.numSuspected = suspicion ? this.numSuspected + 1 : 0;
    this.isTrusted = (this.isTrusted || !surprise) && !change;
    return { outlier, suspicion, change };
  }
}

/** Says whether the adapted model predicts worse than its source does (SourceFallback). */
class SourceFallback {
  constructor() {
    this.forget();
  }

  forget() {
    this.adaptedError = null;
    this.sourceError = null;
  }

  get used() {
    return this.adaptedError !== null && this.adaptedError > 1.01 * this.sourceError;
  }

  learn(adaptedError, sourceError, verdict) {
    if (verdict.change) this.forget();
    else if (!verdict.outlier && !verdict.suspicion) {
      this.adaptedError = movedMean(this.adaptedError, adaptedError, 0.9);
      this.sourceError = movedMean(this.sourceError, sourceError, 0.9);
    }
  }
}

/** A running mean that begins with its first value; what is not finite does not move it. */
export function movedMean(mean, value, decay) {
  if (!Number.isFinite(value)) return mean;
  return mean === null ? value : decay * mean + (1 - decay) * value;
}

/** Keeps adapting a model to the running episode (OnlineAdaptation). */
export class OnlineAdaptation {
  static nothing = { outlier: false, suspicion: false, change: false };

  constructor(model, bounds, options) {
    this.model = model;
    this.adapted = new AdaptedHead(model, bounds);
    this.window = new Window(this.adapted, options);
    this.surprises = new Surprises(options);
    this.fallback = new SourceFallback();
    this.begin();
  }

  begin() {
    this.window.begin();
    this.surprises.forget();
    this.fallback.forget();
    this.counts = { outliers: 0, suspicions: 0, changes: 0 };
    this.verdict = OnlineAdaptation.nothing;
    this.latest = null;
  }

  /**
   * Take in a step.
   *
   * @param {?number[]} before Where it began, null where that is not known.
   * @param {number[]} action What was done.
   * @param {number[]} observation Where it led.
   * @param {function} corrupt What becomes of the change that the model learns from.
   */
  advance(before, action, observation, corrupt = (target) => target) {
    this.verdict = OnlineAdaptation.nothing;
    this.latest = null;
    let transition = null;
    if (before) {
      const encoded = this.model.encode(before, action);
      transition = { encoded, target: corrupt(this.model.targets(before, observation)) };
      const error = meanSquare(this.adapted.predict(encoded), transition.target);
      this.verdict = this.surprises.judge(error);
      this.fallback.learn(error, meanSquare(this.model.predict(encoded), transition.target), this.verdict);
      this.counts.outliers += this.verdict.outlier;
      this.counts.suspicions += this.verdict.suspicion;
      this.counts.changes += this.verdict.change;
      this.latest = { ...transition, error };
    }
    this.window.advance(transition, this.verdict);
    if (this.verdict.change) this.errorAfter = meanSquare(this.adapted.predict(transition.encoded), transition.target);
  }
}

export { meanSquare };
