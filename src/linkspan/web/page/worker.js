// Shared by all tabs of the browser: it has the one stream, because a browser has six connections to a server.
import { Stream } from "/stream.js";

const ports = new Set();
const stream = new Stream((message) => ports.forEach((port) => port.postMessage(message)));

self.addEventListener("connect", ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    if (data === "bye") ports.delete(port);
    if (data !== "hello") return;
    ports.add(port);
    const whole = stream.whole();
    if (whole) port.postMessage(whole);
    if (stream.status && stream.state) port.postMessage({ kind: stream.status });
  };
});
