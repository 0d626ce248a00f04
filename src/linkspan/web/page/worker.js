// Shared by all tabs of the browser: it has the one stream, because a browser has six connections to a server.
import { Stream } from "/stream.js";

const ports = new Set();
const stream = new Stream((message) => ports.forEach((port) => port.postMessage(message)));

// A tab says {hello: token} and {bye: true}. A new session begins with the hello of its first tab.
self.addEventListener("connect", ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    if (data.bye) ports.delete(port);
    if (!("hello" in data)) return;
    ports.add(port);
    stream.use(data.hello);
    const whole = stream.whole();
    if (whole) port.postMessage(whole);
    if (stream.status && stream.state) port.postMessage({ kind: stream.status });
  };
});
