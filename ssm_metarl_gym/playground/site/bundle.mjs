// Bundles: a policy and all that corrects it in one file, whose format docs/bundle.md describes.

import { DynamicsModel, Policy } from "./network.mjs";

const FORMAT = "ssm-metarl-gym bundle 1";
const ARRAYS = { F32: Float32Array, F64: Float64Array, U8: Uint8Array };

/** SHA-256 in hexadecimal digits; null where the browser has none, as on a page without encryption. */
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Read a bundle.
 *
 * @param {ArrayBuffer} buffer The file.
 * @returns {object} policy, model, reference, bounds, online, correction and actionSpace.
 */
export function readBundle(buffer) {
  const { metadata, tensors } = readSafetensors(buffer);
  if (metadata.format !== FORMAT) throw new Error(`the file must be a ${FORMAT}; got ${metadata.format}.`);
  const described = toOptions(JSON.parse(metadata.bundle));
  const { adapter, online, correction, policy, actionSpace } = described;
  require("adapter.kind", adapter.kind, "Adapter");
  require("model.adapts", described.model.adapts, "last_layer");
  require("online.loss.name", online.loss.name, "mse");
  require("online.loss.reduction", online.loss.reduction, "mean");
  require("online.restore", online.restore, "episode");
  const output = actionSpace.n === undefined ? "clip" : "argmax";
  require("policy.output", policy.output, output);
  const model = readModel(described.model, "model", tensors, actionSpace);
  return {
    policy: new Policy(
      {
        layers: readLayers(policy.layers, "policy.layers", tensors),
        normaliser: policy.normaliser && {
          mean: tensors["policy.normaliser.mean"],
          scale: tensors["policy.normaliser.scale"],
          clip: policy.normaliser.clip,
        },
        output,
      },
      actionSpace,
    ),
    model,
    reference: described.reference ? readModel(described.reference, "reference", tensors, actionSpace) : model,
    bounds: adapter,
    online,
    correction,
    actionSpace,
  };
}

/** The JSON and the tensors of a file of safetensors: the length of the JSON, the JSON, and the numbers. */
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(entries)) {
    // A copy, which begins where numbers of this size may.
    tensors[name] = new ARRAYS[dtype](buffer.slice(8 + length + begin, 8 + length + end));
  }
  return { metadata, tensors };
}

function require(name, value, supported) {
  if (value !== supported) throw new Error(`${name} must be ${supported} on this page; got ${value}.`);
}

function readLayers(described, prefix, tensors) {
  return described.map((layer, i) =>
    layer.linear ? { weight: tensors[`${prefix}.${i}.weight`], bias: tensors[`${prefix}.${i}.bias`] } : layer,
  );
}

function readModel({ core }, prefix, tensors, actionSpace) {
  const parts = {
    core: readLayers(core.layers, `${prefix}.core`, tensors),
    head: { weight: tensors[`${prefix}.head.weight`], bias: tensors[`${prefix}.head.bias`] },
    inputShift: tensors[`${prefix}.input_shift`],
    inputScale: tensors[`${prefix}.input_scale`],
    targetScale: tensors[`${prefix}.target_scale`],
  };
  return new DynamicsModel(parts, actionSpace);
}

/** Names and numbers of Python's JSON as JavaScript has them: camel case, and infinity for "inf". */
function toOptions(value) {
  if (value === "inf") return Infinity;
  if (Array.isArray(value)) return value.map(toOptions);
  if (value === null || typeof value !== "object") return value;
  const rename = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [rename(name), toOptions(inner)]));
}
