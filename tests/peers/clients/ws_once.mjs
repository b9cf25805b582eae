// One conversation with Node's ws library: URL as the only argument; it reads no proxy from the environment.
// Prints JSON: the server's first message, whether text and a binary megabyte were echoed, the close code.
import { randomBytes } from "node:crypto";
import WebSocket from "ws";

const socket = new WebSocket(process.argv[2]);
const sent = ["one", "café", randomBytes(1 << 20)];
let first, echoed = true, at = 0;
socket.on("message", (data, isBinary) => {
  if (first === undefined) {
    first = JSON.parse(data);
  } else {
    const expected = sent[at++];
    echoed &&= isBinary ? data.equals(expected) : data.toString() === expected;
  }
  socket.send(at < sent.length ? sent[at] : "close");
});
socket.on("close", (code) => console.log(JSON.stringify({ first, echoed, code })));
socket.on("error", (error) => console.error(error.message));
