// Asks a server with grpc-js, knowing nothing but protos/: run by test_grpc_js.
//
//     node calls.js HOST:PORT PROTOS IMAGES     (N x 784 bytes)
//
// Prints the answers as one JSON object.

const fs = require("fs");
const { promisify } = require("util");
const { createRequire } = require("module");
const installed = createRequire(process.cwd() + "/"); // node_modules lies where we run
const grpc = installed("@grpc/grpc-js");
const loader = installed("@grpc/proto-loader");

const [address, protos, file] = process.argv.slice(2);
const images = fs.readFileSync(file);
const files = ["digits/v1/digits.proto", "inference/inference.proto"];
const definition = loader.loadSync(files, { includeDirs: [protos], keepCase: true });
const { digits, inference } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const classifier = new digits.v1.DigitClassifier(address, credentials);
const inferences = new inference.GRPCInferenceService(address, credentials);

function ask(client, method, request) {
  const options = { deadline: Date.now() + 20_000 };
  return promisify(client[method].bind(client))(request, options);
}

async function stream() {
  const call = classifier.ClassifyStream({ deadline: Date.now() + 20_000 });
  for (let i = 0; i < images.length; i += 784) call.write({ images: images.subarray(i, i + 784) });
  call.end();
  const found = [];
  for await (const answer of call) found.push(...answer.digits);
  return found;
}

async function main() {
  const infer = {
    model_name: "digits",
    inputs: [{ name: "images", datatype: "UINT8", shape: [images.length / 784, 784] }],
    raw_input_contents: [images],
  };
  const inferred = await ask(inferences, "ModelInfer", infer);
  const refused = await ask(classifier, "Classify", { images: Buffer.alloc(785) }).catch((err) => err);
  console.log(
    JSON.stringify({
      classify: await ask(classifier, "Classify", { images }),
      stream: await stream(),
      model: await ask(classifier, "GetModel", {}),
      infer: inferred.raw_output_contents[0].toString("base64"),
      ready: (await ask(inferences, "ServerReady", {})).ready,
      refused: refused.code,
    }),
  );
  classifier.close();
  inferences.close();
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
