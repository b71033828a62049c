// The physics of three families of environments, step by step as ssm_metarl_gym.envs has them.
//
// A task holds what is hidden, by the names that the tasks of Python have. Physics are stepped in double precision, and
// what is seen of a state is rounded to single precision, as there.

const wrapAngle = (angle) => {
  const turn = 2 * Math.PI;
  return ((((angle + Math.PI) % turn) + turn) % turn) - Math.PI;
};
export const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const single = (values) => Array.from(values, Math.fround);

/** A pole on a cart that is pushed to the left (0) or to the right (1). A fall costs 10 and starts another attempt. */
export class CartPole {
  static defaultTask = { polarity: 1, gravity: 9.8, masscart: 1, masspole: 0.1, length: 0.5, force_mag: 10 };
  static dt = 0.02;
  static failurePenalty = 10;
  static numActions = 1;

  constructor(task = {}) {
    this.task = { ...CartPole.defaultTask, ...task };
  }

  /** Where an attempt starts, from four numbers in [0, 1). */
  static drawState(random) {
    return Array.from({ length: 4 }, () => 0.1 * random() - 0.05);
  }

  step([action]) {
    const { polarity, gravity, masscart, masspole, length, force_mag: size } = this.task;
    const [x, speed, angle, turning] = this.state;
    const push = polarity > 0 ? action : 1 - action;
    const force = push === 1 ? size : -size;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    const total = masspole + masscart;
    const moment = masspole * length;
    const accelerated = (force + moment * turning * turning * sin) / total;
    const angular = (gravity * sin - cos * accelerated) / (length * (4 / 3 - (masspole * cos * cos) / total));
    const linear = accelerated - (moment * angular * cos) / total;
    const dt = CartPole.dt;
    this.state = [x + dt * speed, speed + dt * linear, angle + dt * turning, turning + dt * angular];
    const failed = Math.abs(this.state[0]) > 2.4 || Math.abs(this.state[2]) > (12 * 2 * Math.PI) / 360;
    return { reward: failed ? 1 - CartPole.failurePenalty : 1, failed };
  }

  observe() {
    return single(this.state);
  }
}

/** A pendulum that a torque swings up; the action is a share of 2 N m. */
export class Pendulum {
  static defaultTask = { polarity: 1, g: 10, m: 1, l: 1, gain: 1 };
  static dt = 0.05;
  static numActions = 1;

  constructor(task = {}) {
    this.task = { ...Pendulum.defaultTask, ...task };
  }

  static drawState(random) {
    return [Math.PI * (2 * random() - 1), 2 * random() - 1];
  }

  step([action]) {
    const { polarity, g, m, l, gain } = this.task;
    const [angle, turning] = this.state;
    const most = 2 * gain;
    const torque = clip(clip(action, -1, 1) * (2 * gain * polarity), -most, most);
    const cost = wrapAngle(angle) ** 2 + 0.1 * turning ** 2 + 0.001 * torque ** 2;
    const angular = ((3 * g) / (2 * l)) * Math.sin(angle) + (3 / (m * l ** 2)) * torque;
    const next = clip(turning + angular * Pendulum.dt, -8, 8);
    this.state = [angle + next * Pendulum.dt, next];
    return { reward: -cost, failed: false };
  }

  observe() {
    const [angle, turning] = this.state;
    return single([Math.cos(angle), Math.sin(angle), turning]);
  }
}

/** A point in the plane whose two motors obey a hidden matrix. */
export class PointActuators {
  static defaultTask = { map_0_0: 1, map_0_1: 0, map_1_0: 0, map_1_1: 1, offset_0: 0, offset_1: 0 };
  static dt = 0.1;
  static numActions = 2;

  constructor(task = {}) {
    this.task = { ...PointActuators.defaultTask, ...task };
  }

  static drawState(random) {
    return [2 * random() - 1, 2 * random() - 1, 0, 0];
  }

  step(action) {
    const { task } = this;
    const [dt, force, wall] = [PointActuators.dt, 4, 3];
    const told = action.map((one) => clip(one, -1, 1));
    const position = this.state.slice(0, 2);
    const velocity = this.state.slice(2);
    for (const i of [0, 1]) {
      velocity[i] *= 1 - dt;
      for (const j of [0, 1]) velocity[i] += dt * force * task[`map_${i}_${j}`] * told[j];
      velocity[i] += dt * force * task[`offset_${i}`];
      position[i] = clip(position[i] + dt * velocity[i], -wall, wall);
    }
    this.state = [...position, ...velocity];
    const meanSquare = ([a, b]) => (a * a + b * b) / 2;
    return { reward: 1 - 2 * Math.sqrt(meanSquare(position)) - 0.02 * meanSquare(told), failed: false };
  }

  observe() {
    return single(this.state);
  }
}
