// Follow an object from frame to frame, by an artifact for tracking: the loop of edgemim.edge.tracking.tracker.
import { Tensor } from "./artifact.js";
import { normalise, roundEven } from "./images.js";

const TEMPLATE_SUFFIX = "-template";

export class Tracker {
  /** Opens both graphs of the cached form, or the one of the joint form. */
  static async open(artifact, key) {
    const facts = artifact.manifest.tracking;
    if (!facts) throw new Error(`the artifact is for ${artifact.manifest.task}, not a tracker`);
    const template = facts.form === "cached" ? await artifact.open(key + TEMPLATE_SUFFIX) : null;
    return new Tracker(facts, artifact.manifest.preprocessing, await artifact.open(key), template);
  }

  constructor(facts, preprocessing, session, templateSession) {
    Object.assign(this, { facts, preprocessing, session, templateSession });
  }

  /** Take the template from the first frame; box = [left, top, width, height] in pixels. */
  async init(image, box) {
    if (box.length !== 4 || !box.every(Number.isFinite) || box[2] <= 0 || box[3] <= 0)
      throw new Error(`box ${box} is not left, top, width, height in pixels, the last two above 0`);
    const { template_name, template_factor, template_size } = this.facts;
    const fixed = { [template_name]: this.#crop(image, box, template_factor, template_size).tensor };
    this.fixed = this.templateSession ? { ...(await this.templateSession.run(fixed)) } : fixed;
    this.box = [...box];
  }

  /** Find the object in the next frame: {box, score, lost}. */
  async update(image) {
    const { search_name, search_factor, search_size, maps, lost_below, size_rate = 1 } = this.facts;
    const { tensor, side } = this.#crop(image, this.box, search_factor, search_size);
    const found = await this.session.run({ ...this.fixed, [search_name]: tensor });
    const [score, size, offset] = maps.map((name) => found[name].data);
    const grid = Math.sqrt(score.length);
    const best = this.#argmax(score, grid);
    const [row, column] = [Math.floor(best / grid), best % grid];
    const cells = grid * grid;
    const centreX = this.box[0] + this.box[2] / 2 + ((column + offset[best]) / grid - 0.5) * side;
    const centreY = this.box[1] + this.box[3] / 2 + ((row + offset[cells + best]) / grid - 0.5) * side;
    const sure = score.reduce((largest, value) => Math.max(largest, value), 0);
    const step = size_rate < 1 ? size_rate * sure : 1;
    const [width, height] = [size[best], size[cells + best]].map((s, i) => step * s * side + (1 - step) * this.box[2 + i]);
    const box = [centreX - width / 2, centreY - height / 2, width, height];
    // A network that overflowed: the box waits where it was.
    if (![...score, ...box].every(Number.isFinite)) return { box: this.box, score: 0, lost: true };
    this.box = this.#clip(box, image.width, image.height);
    return { box: this.box, score: sure, lost: sure < lost_below };
  }

  #argmax(score, grid) {
    const hann = Array.from({ length: grid }, (_, k) => 0.5 * (1 - Math.cos((2 * Math.PI * (k + 1)) / (grid + 1))));
    let best = 0;
    let largest = -Infinity;
    for (let i = 0; i < score.length; i++) {
      const weight = this.facts.window === "hann" ? hann[Math.floor(i / grid)] * hann[i % grid] : 1;
      if (score[i] * weight > largest) [best, largest] = [i, score[i] * weight];
    }
    return best;
  }

  #clip([left, top, width, height], imageWidth, imageHeight) {
    const [x, w] = clipAxis(left, width, imageWidth, this.facts.margin_px);
    const [y, h] = clipAxis(top, height, imageHeight, this.facts.margin_px);
    return [x, y, w, h];
  }

  /** The square around the box, resized (bilinear, half-pixel centres, black outside), as a tensor; its side in pixels. */
  #crop(image, [left, top, width, height], factor, size) {
    const side = Math.max(1, Math.ceil(Math.sqrt(width * height) * factor));
    const x0 = roundEven(left + width / 2 - side / 2);
    const y0 = roundEven(top + height / 2 - side / 2);
    const pixels = new Uint8ClampedArray(3 * size * size);
    const places = Array.from({ length: size }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * side) / size - 0.5, 0), side - 1);
      const low = Math.min(Math.floor(at), side - 1);
      return { low, high: Math.min(low + 1, side - 1), share: at - low };
    });
    const lost = this.facts.border === "whole" ? 0 : 1; // OSTrack's code takes the last row and column for outside
    const at = (x, y, c) =>
      x < 0 || y < 0 || x >= image.width - lost || y >= image.height - lost ? 0 : image.data[4 * (y * image.width + x) + c];
    for (let y = 0; y < size; y++) {
      const v = places[y];
      for (let x = 0; x < size; x++) {
        const u = places[x];
        for (let c = 0; c < 3; c++) {
          const above = at(x0 + u.low, y0 + v.low, c) * (1 - u.share) + at(x0 + u.high, y0 + v.low, c) * u.share;
          const below = at(x0 + u.low, y0 + v.high, c) * (1 - u.share) + at(x0 + u.high, y0 + v.high, c) * u.share;
          pixels[3 * (y * size + x) + c] = Math.floor(above * (1 - v.share) + below * v.share + 0.5);
        }
      }
    }
    const tensor = new Tensor("float32", normalise(pixels, size, this.preprocessing), [1, 3, size, size]);
    return { tensor, side };
  }
}

function clipAxis(start, length, limit, margin) {
  const keep = Math.min(margin, limit);
  const first = Math.min(Math.max(0, start), limit - keep);
  const last = Math.min(Math.max(keep, start + length), limit);
  return [first, Math.max(keep, last - first)];
}
