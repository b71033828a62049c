// The policy and the models of the dynamics, as networks of plain layers.

const round = Math.fround;
const ACTIVATIONS = {
  Tanh: Math.tanh,
  ReLU: (value) => Math.max(value, 0),
  SiLU: (value) => value / (1 + Math.exp(-value)),
};

/** What a linear layer makes of an input: Float64Array[out]. */
export function linear({ weight, bias }, input) {
  const width = input.length;
  return Float64Array.from(bias, (offset, i) => {
    let sum = offset;
    for (let j = 0; j < width; j++) sum += weight[i * width + j] * input[j];
    return sum;
  });
}

/** What a sequence makes of an input: each layer has weight and bias, or the name of an activation. */
function forward(layers, input) {
  return layers.reduce(
    (values, layer) => (layer.activation ? values.map(ACTIVATIONS[layer.activation]) : linear(layer, values)),
    Float64Array.from(input),
  );
}

/** What PPO and VecNormalize of Stable-Baselines3 make of an observation: the deterministic action, Array[A]. */
export class Policy {
  constructor({ layers, normaliser, output }, actionSpace) {
    this.layers = layers;
    this.normaliser = normaliser;
    this.output = output;
    this.actionSpace = actionSpace;
  }

  act(observation) {
    const output = Array.from(forward(this.layers, this.#scale(observation)));
    const { low, high, start } = this.actionSpace;
    if (this.output === "argmax") return [start + output.indexOf(Math.max(...output))];
    return output.map((value, i) => round(Math.min(Math.max(value, low[i]), high[i])));
  }

  #scale(observation) {
    if (!this.normaliser) return observation;
    const { mean, scale, clip } = this.normaliser;
    return observation.map((value, i) => round(Math.min(Math.max((value - mean[i]) / scale[i], -clip), clip)));
  }
}

/** A model of the dynamics whose last layer adapts: how an action changes the observation, in standard deviations. */
export class DynamicsModel {
  constructor({ core, head, inputShift, inputScale, targetScale }, actionSpace) {
    this.core = core;
    this.head = head;
    this.inputShift = inputShift;
    this.inputScale = inputScale;
    this.targetScale = targetScale;
    this.actionSpace = actionSpace;
  }

  /** The features of an observation and an action, which no adaptation changes. */
  encode(observation, action) {
    const { n, start } = this.actionSpace;
    const told = n === undefined ? action : Array.from({ length: n }, (_, i) => Number(i === action[0] - start));
    const input = [...observation, ...told];
    const scaled = input.map((v, i) => round(round(round(v) - this.inputShift[i]) / this.inputScale[i]));
    return forward(this.core, scaled);
  }

  /** The change that the model should predict, normalised. */
  targets(observation, next) {
    return observation.map((value, i) => round(round(next[i] - value) / this.targetScale[i]));
  }

  predict(encoded, head = this.head) {
    return linear(head, encoded);
  }
}
