// A minimal Redis client: one connection, one command at a time. In production use the package `redis`, whose
// client.sendCommand([...]) takes the same arguments.
// rediss:// is TLS that verifies certificate and host, with the files of DNF_REDIS_CA_FILE (else Node's authorities),
// DNF_REDIS_CERTIFICATE_FILE and DNF_REDIS_KEY_FILE.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import net from "node:net";
import tls from "node:tls";

const pem = (variable) => (process.env[variable] ? readFileSync(process.env[variable]) : undefined);

async function open({ protocol, hostname, port }) {
  const address = { host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 6379) };
  if (protocol === "redis:") {
    const socket = net.connect(address);
    await once(socket, "connect");
    return socket;
  }
  if (protocol !== "rediss:") throw new Error(`DNF_REDIS_URL must begin with redis:// or rediss://, not ${protocol}//`);
  const trust = { ca: pem("DNF_REDIS_CA_FILE"), rejectUnauthorized: true };
  const own = { cert: pem("DNF_REDIS_CERTIFICATE_FILE"), key: pem("DNF_REDIS_KEY_FILE") };
  const socket = tls.connect({ ...address, ...trust, ...own });
  await once(socket, "secureConnect");
  return socket;
}

export async function connect(url) {
  const parts = new URL(url);
  const { username, password, pathname } = parts;
  const socket = await open(parts);
  const chunks = socket[Symbol.asyncIterator]();
  let unread = Buffer.alloc(0);

  async function atLeast(count) {
    while (unread.length < count) {
      const { value, done } = await chunks.next();
      if (done) throw new Error("the broker closed the connection");
      unread = Buffer.concat([unread, value]);
    }
  }
  async function line() {
    while (unread.indexOf("\r\n") < 0) await atLeast(unread.length + 1);
    const end = unread.indexOf("\r\n");
    const text = unread.toString("utf8", 0, end);
    unread = unread.subarray(end + 2);
    return text;
  }
  async function reply() {
    const head = await line();
    const value = head.slice(1);
    if (head[0] === "-") return new Error(value);
    if (head[0] === ":") return Number(value);
    if (head[0] === "+") return value;
    const size = Number(value);
    if (size < 0) return null;
    if (head[0] === "*") {
      const items = [];
      for (let left = size; left > 0; left--) items.push(await reply());
      return items;
    }
    await atLeast(size + 2);
    const bytes = unread.subarray(0, size);
    unread = unread.subarray(size + 2);
    return bytes;
  }
  async function send(...words) {
    const parts = words.map((word) => Buffer.from(String(word)));
    const framed = parts.flatMap((part) => [Buffer.from(`$${part.length}\r\n`), part, Buffer.from("\r\n")]);
    socket.write(Buffer.concat([Buffer.from(`*${parts.length}\r\n`), ...framed]));
    const answer = await reply();
    if (answer instanceof Error) throw answer;
    return answer;
  }
  if (password) await send("AUTH", ...(username ? [decodeURIComponent(username)] : []), decodeURIComponent(password));
  if (pathname.length > 1) await send("SELECT", pathname.slice(1));
  return { send, close: () => socket.destroy() };
}
