// Random numbers from a seed, so that both sides of the page see the same starts and the same noise.

/** A stream of numbers in [0, 1) with 32 bits of state: a Weyl sequence, mixed by multiplications. */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  uniform = () => {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let mixed = this.state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  };

  /** A number of the standard normal distribution (Box and Muller 1958). */
  normal = () => {
    const size = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return size * Math.cos(2 * Math.PI * this.uniform());
  };
}

/** The solution x of A x = b by elimination with pivots; a column without one gives no number. */
export function solve(matrix, right) {
  const n = right.length;
  const rows = matrix.map((row, i) => [...row, right[i]]);
  for (let i = 0; i < n; i++) {
    let pivot = i;
    for (let k = i + 1; k < n; k++) if (Math.abs(rows[k][i]) > Math.abs(rows[pivot][i])) pivot = k;
    [rows[i], rows[pivot]] = [rows[pivot], rows[i]];
    for (let k = i + 1; k < n; k++) {
      const factor = rows[k][i] / rows[i][i];
      for (let j = i; j <= n; j++) rows[k][j] -= factor * rows[i][j];
    }
  }
  const x = new Array(n).fill(0);
  for (let i = n - 1; i >= 0; i--) {
    let rest = rows[i][n];
    for (let j = i + 1; j < n; j++) rest -= rows[i][j] * x[j];
    x[i] = rest / rows[i][i];
  }
  return x;
}
