// What ActionCorrection does: replace an action by the one that does now what it did in the physics of the reference.

import { AdaptedHead, OnlineAdaptation, Window, meanSquare, movedMean } from "./adaptation.mjs";
import { solve } from "./numbers.mjs";

const STEP = 0.05; // of the finite differences, in half ranges of the action
const ITERATIONS = 2; // of Gauss and Newton
const round = Math.fround;
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const sumOfSquares = (values) => values.reduce((sum, one) => sum + one * one, 0);

/** The index of the least of some numbers, the first of equals. */
const indexOfLeast = (values) => values.indexOf(Math.min(...values));

/** A policy behind both wrappers, for one episode after the other. */
export class ActionCorrection {
  /** @param {object} bundle What loadBundle gave. */
  constructor({ model, reference, bounds, online, correction, actionSpace }) {
    this.reference = reference;
    this.online = new OnlineAdaptation(model, bounds, online);
    this.options = correction;
    this.space = actionSpace;
    this.isDiscrete = actionSpace.n !== undefined;
    this.match = correction.match;
    if (!this.isDiscrete) {
      this.half = actionSpace.low.map((low, i) => (actionSpace.high[i] - low) / 2);
      this.middle = actionSpace.low.map((low, i) => (actionSpace.high[i] + low) / 2);
      // A twin adapts by the same steps on the same inputs, to what the reference would have done.
      this.twin = new Window(new AdaptedHead(model, bounds), online);
    }
    this.begin();
  }

  /** Begin an episode with both gates closed. */
  begin() {
    this.online.begin();
    this.twin?.begin();
    this.#forget();
    this.isOpen = false;
  }

  #forget() {
    this.adaptedError = null;
    this.referenceError = null;
    this.effect = null;
    this.numSteps = 0;
  }

  /** The action to take for the one that was asked for; with the gates closed the same. */
  act(observation, asked) {
    if (this.twin) this.#compareEffects(observation, asked);
    const differs =
      this.adaptedError !== null && this.referenceError > this.options.gate * this.adaptedError;
    const isWeaker = this.isDiscrete || (this.effect !== null && this.effect < this.options.effectGate);
    this.isOpen = differs && isWeaker;
    if (!this.isOpen) return [...asked];
    return this.isDiscrete ? this.#nearestChoice(observation, asked) : this.#leastSquares(observation, asked);
  }

  /** Take in the step that an action led to; see OnlineAdaptation. */
  advance(before, taken, observation, { restarted = false, corrupt } = {}) {
    const expected = this.#ask(this.reference, before, taken);
    // Nothing learns from the way to another attempt, but a sensor that lags tells it a step later.
    if (restarted) corrupt?.(this.online.model.targets(before, observation));
    this.online.advance(restarted ? null : before, taken, observation, corrupt);
    const { verdict, latest } = this.online;
    const isKept = latest !== null && !verdict.outlier && !verdict.suspicion;
    this.latestReferenceError = latest === null ? null : meanSquare(expected, latest.target);
    // In other physics the means begin anew, with what the model makes of it after this step.
    if (verdict.change) this.#forget();
    if (isKept) {
      const error = verdict.change ? this.online.errorAfter : latest.error;
      this.adaptedError = movedMean(this.adaptedError, error, this.options.decay);
      this.referenceError = movedMean(this.referenceError, this.latestReferenceError, this.options.decay);
      this.numSteps += 1;
    }
    this.twin?.advance(latest && { encoded: latest.encoded, target: expected }, verdict);
  }

  /** What a model predicts for an action: the reference, or one that adapts. */
  #ask(model, observation, action) {
    if (model === this.reference) return model.predict(model.encode(observation, action));
    return model.predict(this.online.model.encode(observation, action));
  }

  /** Estimate what actions do, in units of what they do in the reference, by the asked one at full size and back. */
  #compareEffects(observation, asked) {
    const scaled = asked.map((value, i) => (value - this.middle[i]) / this.half[i]);
    const size = Math.max(...scaled.map(Math.abs));
    const direction = scaled.map((value, i) => (size > 1e-6 ? value / size : 1) * this.half[i]);
    const difference = (adapted) => {
      const [there, back] = [1, -1].map((sign) =>
        this.#ask(adapted, observation, direction.map((value, i) => round(this.middle[i] + sign * value))),
      );
      return there.map((value, i) => value - back[i]);
    };
    const now = difference(this.online.adapted);
    const before = difference(this.twin.adapted);
    const power = sumOfSquares(before);
    const along = now.reduce((sum, value, i) => sum + value * before[i], 0);
    let ratio = along / Math.max(power, 1e-12);
    // The effect of several motors can turn, however large it is.
    if (asked.length > 1) ratio = Math.min(ratio, along / Math.max(Math.sqrt(power * sumOfSquares(now)), 1e-12));
    const { priorSteps } = this.options;
    const effect = 1 + (this.numSteps / Math.max(this.numSteps + priorSteps, 1)) * (ratio - 1);
    if (power > 1e-12 && Number.isFinite(effect)) this.effect = effect;
  }

  /** The choice whose prediction is nearest to the wanted one; the asked one among equals. */
  #nearestChoice(observation, asked) {
    const choices = Array.from({ length: this.space.n }, (_, i) => [this.space.start + i]);
    const predict = (model) => {
      const predictions = choices.map((choice) => Array.from(this.#ask(model, observation, choice)));
      if (this.match !== "effect") return predictions;
      const means = predictions[0].map((_, i) => predictions.reduce((sum, one) => sum + one[i], 0) / choices.length);
      return predictions.map((prediction) => prediction.map((value, i) => value - means[i]));
    };
    const own = asked[0] - this.space.start;
    const [now, wanted] = [predict(this.online.adapted), predict(this.reference)[own]];
    const errors = now.map((prediction) => sumOfSquares(prediction.map((value, i) => value - wanted[i])));
    const best = indexOfLeast(errors);
    return choices[errors[own] <= errors[best] ? own : best];
  }

  /** argmin over u of |f(o, u) - wanted|^2 + regularisation |u|^2, by steps of Gauss and Newton, within the bounds. */
  #leastSquares(observation, asked) {
    const { regularisation } = this.options;
    const numActions = asked.length;
    const adapted = this.online.adapted;
    let wanted = this.#ask(this.reference, observation, asked);
    if (this.match === "effect") {
      const idle = asked.map((_, i) => clip(0, this.space.low[i], this.space.high[i]));
      const [before, now] = [this.#ask(this.reference, observation, idle), this.#ask(adapted, observation, idle)];
      wanted = wanted.map((value, i) => value - before[i] + now[i]);
    }
    const toAction = (u) => u.map((value, i) => round(value * this.half[i] + this.middle[i]));
    const evaluate = (u) => {
      const predicted = this.#ask(adapted, observation, toAction(u));
      const error = sumOfSquares(predicted.map((value, i) => value - wanted[i]));
      return { u, predicted, cost: error + regularisation * sumOfSquares(u) };
    };
    const cheapest = (candidates) => candidates[indexOfLeast(candidates.map(({ cost }) => cost))];
    const axis = (size, i) => Array.from({ length: numActions }, (_, j) => (i === j ? size : 0));
    const along = (size) => Array.from({ length: numActions }, (_, i) => axis(size, i));

    // Begin where it costs least: far from the asked action the model bends.
    const scaled = asked.map((value, i) => (value - this.middle[i]) / this.half[i]);
    const starts = [scaled, scaled.map((value) => -value), axis(0, 0), ...[-1, -0.5, 0.5, 1].flatMap(along)];
    let best = cheapest(starts.map(evaluate));
    for (let iteration = 0; iteration < ITERATIONS; iteration++) {
      const { u, predicted } = best;
      const jacobian = along(STEP).map((step) => {
        const [ahead, back] = [1, -1].map((sign) => evaluate(u.map((value, i) => value + sign * step[i])).predicted);
        return ahead.map((value, i) => (value - back[i]) / (2 * STEP)); // D
      });
      const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
      const normal = jacobian.map((a, i) => jacobian.map((b, j) => dot(a, b) + (i === j ? regularisation : 0)));
      const residual = predicted.map((value, d) => wanted[d] - value + dot(u, jacobian.map((row) => row[d])));
      const target = jacobian.map((row) => dot(row, residual));
      const step = solve(normal, target).map((value, i) => clip(value, -1, 1) - u[i]);
      // The whole step or a part of it, or none where none costs less.
      const tried = cheapest([1, 0.3].map((share) => evaluate(u.map((value, i) => value + share * step[i]))));
      if (tried.cost < best.cost) best = tried;
    }
    return toAction(best.u).map((value, i) => clip(value, this.space.low[i], this.space.high[i]));
  }
}
