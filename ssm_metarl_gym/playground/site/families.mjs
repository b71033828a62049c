// What the page offers of each family: its physics, its sliders and its motors.

import { CartPole, Pendulum, PointActuators } from "./physics.mjs";

const GAIN = { unit: "", low: 0.2, high: 2, step: 0.05 };

/** The matrix of two motors: what each does for itself, then both turned. */
function mixMotors({ reversed0, reversed1, gain0, gain1, rotation }) {
  const [cos, sin] = [Math.cos((rotation * Math.PI) / 180), Math.sin((rotation * Math.PI) / 180)];
  const [first, second] = [reversed0 ? -gain0 : gain0, reversed1 ? -gain1 : gain1];
  return { map_0_0: cos * first, map_0_1: -sin * second, map_1_0: sin * first, map_1_1: cos * second };
}

/** Numbers with their signs, of two digits. */
const nameNumbers = (action) =>
  action.map((value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`).join(", ");

const withPolarity = ({ reversed0, ...others }) => ({ polarity: reversed0 ? -1 : 1, ...others });

/**
 * Of each family: its name in bundles.json, its title and goal, a class of physics.mjs, how many steps of it make a
 * second and an episode, the names of its motors, how an action is told, its sliders with what the policy was trained
 * in, and the task that they stand for.
 */
export const FAMILIES = [
  {
    name: "cartpole",
    title: "CartPole",
    goal: "keep the pole up",
    Physics: CartPole,
    stepsPerSecond: 40,
    episodeLength: 500,
    motors: ["motor"],
    nameAction: ([action]) => (action === 1 ? "right" : "left"),
    sliders: [
      { name: "force_mag", label: "Strength of the motor", unit: "N", low: 2, high: 20, step: 0.5, known: 10 },
      { name: "masspole", label: "Mass of the pole", unit: "kg", low: 0.05, high: 1, step: 0.05, known: 0.1 },
      { name: "length", label: "Half the length of the pole", unit: "m", low: 0.1, high: 1, step: 0.05, known: 0.5 },
    ],
    toTask: withPolarity,
  },
  {
    name: "pendulum",
    title: "Pendulum",
    goal: "swing up and hold",
    Physics: Pendulum,
    stepsPerSecond: 20,
    episodeLength: 400,
    motors: ["motor"],
    nameAction: nameNumbers,
    sliders: [
      { name: "gain", label: "Strength of the motor", ...GAIN, known: 1 },
      { name: "m", label: "Mass", unit: "kg", low: 0.5, high: 1.5, step: 0.05, known: 1 },
      { name: "l", label: "Length", unit: "m", low: 0.5, high: 1.5, step: 0.05, known: 1 },
    ],
    toTask: withPolarity,
  },
  {
    name: "point",
    title: "Point",
    goal: "go to the ring",
    Physics: PointActuators,
    stepsPerSecond: 12,
    episodeLength: 150,
    motors: ["motor 1", "motor 2"],
    nameAction: nameNumbers,
    sliders: [
      { name: "gain0", label: "Strength of motor 1", ...GAIN, known: 1 },
      { name: "gain1", label: "Strength of motor 2", ...GAIN, known: 1 },
      { name: "rotation", label: "Both motors turned by", unit: "°", low: -180, high: 180, step: 5, known: 0 },
    ],
    toTask: mixMotors,
  },
];

/** What the policy of a family was trained in, as values of its sliders and motors. */
export function knownValues({ sliders, motors }) {
  const values = sliders.map(({ name, known }) => [name, known]);
  return Object.fromEntries([...values, ...motors.map((_, i) => [`reversed${i}`, false])]);
}
