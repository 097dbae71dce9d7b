// Images -> classes, by an artifact for classification.
import { Tensor } from "./artifact.js";
import { decodeImage, preprocess } from "./images.js";

/** {label, probability, logits} of one image (a Blob). */
export async function classify(session, manifest, blob) {
  const size = manifest.preprocessing.image_size;
  const image = preprocess(await decodeImage(blob), manifest.preprocessing);
  const outputs = await session.run({ [manifest.input_name]: new Tensor("float32", image, [1, 3, size, size]) });
  const logits = Array.from(outputs[manifest.output_names[0]].data);
  if (logits.length !== manifest.labels.length || !logits.every(Number.isFinite))
    throw new Error(`${logits.length} logits for ${manifest.labels.length} labels, or not finite; export the model again`);
  const chances = softmax(logits);
  const best = chances.indexOf(Math.max(...chances));
  return { label: manifest.labels[best], probability: chances[best], logits };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const parts = logits.map((value) => Math.exp(value - largest));
  const sum = parts.reduce((total, part) => total + part, 0);
  return parts.map((part) => part / sum);
}
