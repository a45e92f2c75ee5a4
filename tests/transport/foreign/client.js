// Calls Forward, and ForwardStream, as any user of gRPC in JavaScript would: with what the .proto files say and no more.
// Usage: node client.js ADDRESS PROTOS JSON, where JSON has the payloads of a request in base64 and a chunk's digest.
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos, told] = process.argv.slice(2);
const { payloads, metas, whole, digest } = JSON.parse(told);
const definition = loader.loadSync("pnode/v1/vnode.proto", { includeDirs: [protos], keepCase: true, longs: String, enums: String });
const VNodes = grpc.loadPackageDefinition(definition).pnode.v1.VNodes;
const client = new VNodes(address, grpc.credentials.createInsecure());
const base64 = (buffers) => buffers.map((each) => each.toString("base64"));
const deadline = () => ({ deadline: Date.now() + 20000 });

function fail(error) {
  console.error(error);
  process.exit(1);
}

const request = {
  fence: { run: "run", vnode: "stem", generation: 3, epoch: 5 },
  inputs: metas,
  payloads: payloads.map((each) => Buffer.from(each, "base64")),
};

client.Forward(request, deadline(), (error, reply) => {
  if (error) fail(error);
  const bytes = Buffer.from(whole, "base64");
  const cut = 5000;
  const stream = client.ForwardStream(deadline());
  const pieces = [];
  stream.on("data", (chunk) => pieces.push(chunk));
  stream.on("error", fail);
  stream.on("end", () => {
    const found = {
      version: reply.version,
      outputs: reply.outputs,
      payloads: base64(reply.payloads),
      pieces: base64(pieces.flatMap((each) => each.payloads)),
      num_bytes: pieces[0].whole.num_bytes,
    };
    process.stdout.write(JSON.stringify(found), () => process.exit(0));
  });
  stream.write({ whole: { num_bytes: bytes.length, xxh3_128: Buffer.from(digest, "base64") }, payloads: [bytes.subarray(0, cut)] });
  stream.write({ payloads: [bytes.subarray(cut)] });
  stream.end();
});
