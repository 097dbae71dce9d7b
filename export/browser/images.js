// Decode an image and prepare it for a model, with the same pixels as edgemim's Python: Pillow's antialiased resize of
// two passes with 8-bit rounding between them.

const BITS = 22; // fractional bits of a filter weight

/** A Blob, upright, transparent pixels on white -> {width, height, data: RGBA bytes}. Throws on what is no image. */
export async function decodeImage(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  return pixelsOf(bitmap, bitmap.width, bitmap.height);
}

/** The pixels of anything that a canvas can draw: a bitmap, or a video's frame. */
export function pixelsOf(source, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** Float32Array [3 * s * s]: short side to s / crop_pct and centre crop in one resize, then normalise. */
export function preprocess(image, facts) {
  return normalise(resizeCrop(image, facts), facts.image_size, facts);
}

/** RGB bytes [3 * s * s], rows of pixels: the centre crop that the model sees. */
export function resizeCrop({ width, height, data }, { image_size: size, crop_pct, interpolation }) {
  const short = roundEven(size / crop_pct);
  const wide = Math.max(short, Math.trunc((short * width) / Math.min(width, height)));
  const high = Math.max(short, Math.trunc((short * height) / Math.min(width, height)));
  const left = (roundEven((wide - size) / 2) * width) / wide;
  const top = (roundEven((high - size) / 2) * height) / high;
  const cubic = interpolation === "bicubic";
  const columns = filter(width, left, Math.min(width, left + (size * width) / wide), size, cubic);
  const rows = filter(height, top, Math.min(height, top + (size * height) / high), size, cubic);
  const narrow = new Uint8ClampedArray(3 * size * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < size; x++) {
      for (let c = 0; c < 3; c++) {
        narrow[3 * (y * size + x) + c] = weigh(columns[x], data, 4 * (y * width + columns[x].first) + c, 4);
      }
    }
  }
  const pixels = new Uint8ClampedArray(3 * size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < 3 * size; x++) {
      pixels[3 * size * y + x] = weigh(rows[y], narrow, 3 * size * rows[y].first + x, 3 * size);
    }
  }
  return pixels;
}

/** RGB bytes of a square -> Float32Array [3, s, s]: divide by 255, subtract the mean, divide by the deviation. */
export function normalise(pixels, size, { mean, std }) {
  const result = new Float32Array(3 * size * size);
  for (let c = 0; c < 3; c++) {
    const table = Float32Array.from({ length: 256 }, (_, level) =>
      Math.fround(Math.fround(Math.fround(level / 255) - Math.fround(mean[c])) / Math.fround(std[c])),
    );
    for (let i = 0; i < size * size; i++) result[c * size * size + i] = table[pixels[3 * i + c]];
  }
  return result;
}

function filter(inputs, begin, end, outputs, cubic) {
  const [from, to] = [Math.fround(begin), Math.fround(end)]; // Pillow keeps the box in single precision
  const scale = Math.fround(to - from) / outputs;
  const stretch = Math.max(scale, 1);
  const support = (cubic ? 2 : 1) * stretch;
  return Array.from({ length: outputs }, (_, i) => {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(inputs, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push((cubic ? bicubic : bilinear)((x - centre + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => roundAway((weight / sum) * 2 ** BITS)) };
  });
}

function weigh({ weights }, samples, start, stride) {
  let sum = 2 ** (BITS - 1);
  for (let k = 0; k < weights.length; k++) sum += weights[k] * samples[start + k * stride];
  return Math.floor(sum / 2 ** BITS); // a clamped array cuts it to 0..255
}

function bicubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? a * (((d - 5) * d + 8) * d - 4) : 0;
}

const bilinear = (x) => Math.max(0, 1 - Math.abs(x));
const roundAway = (x) => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);

/** Python's round: halves to the even neighbour. */
export function roundEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}
