// Open an edgemim artifact from a folder on the same server: the manifest, and a model after its hash was checked.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// Threads need a page that is isolated from other origins: serve.py sends the headers.
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

export const Tensor = ort.Tensor;

/** {manifest, open(key)}; throws an Error of one sentence. */
export async function openArtifact(folder) {
  const base = new URL(folder.endsWith("/") ? folder : `${folder}/`, location.href);
  const answer = await fetch(new URL("manifest.json", base));
  if (!answer.ok) throw new Error(`${base.pathname} has no manifest.json; give the folder that \`edgemim export\` wrote`);
  const text = await answer.text();
  let manifest = null;
  try {
    manifest = text.length < 2 ** 24 ? JSON.parse(text) : null;
  } catch {
    // said below
  }
  if (!manifest?.files || !manifest.preprocessing) throw new Error(`${base.pathname}manifest.json makes no sense; export the model again`);
  const { image_size: size, mean, std } = manifest.preprocessing;
  const three = [mean, std].every((row) => Array.isArray(row) && row.length === 3 && row.every(Number.isFinite));
  if (!three || std.some((value) => value <= 0) || !Number.isInteger(size) || size < 1 || size > 16384)
    throw new Error(`${base.pathname}manifest.json: preprocessing makes no sense; export the model again`);
  return { manifest, open: (key) => openModel(base, manifest, key) };
}

async function openModel(base, manifest, key) {
  const entry = manifest.files[key];
  if (!entry) throw new Error(`the artifact has no model '${key}'; it has ${Object.keys(manifest.files).join(", ")}`);
  if (entry.format !== "onnx") throw new Error(`'${key}' is ${entry.format}; a browser runs ONNX files`);
  const path = new URL(entry.path, base);
  if (path.origin !== base.origin || !path.pathname.startsWith(base.pathname)) throw new Error(`${entry.path} leaves the artifact`);
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${entry.path} is missing; copy the whole artifact folder`);
  const bytes = await answer.arrayBuffer();
  // Hashes are computed only where a page is trusted: https, or this machine.
  if (crypto.subtle && (await sha256(bytes)) !== entry.sha256) throw new Error(`${entry.path} is not the file that was exported; export it again`);
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
