// A minimal Redis client: one connection, one command at a time. In production use the package `redis`, whose
// client.sendCommand([...]) takes the same arguments.
import { once } from "node:events";
import net from "node:net";

export async function connect(url) {
  const { hostname, port, username, password, pathname } = new URL(url);
  const socket = net.connect(Number(port || 6379), hostname);
  await once(socket, "connect");
  let unread = Buffer.alloc(0);

  async function atLeast(count) {
    while (unread.length < count) unread = Buffer.concat([unread, (await once(socket, "data"))[0]]);
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
  if (password) await send("AUTH", ...(username ? [username] : []), decodeURIComponent(password));
  if (pathname.length > 1) await send("SELECT", pathname.slice(1));
  return { send, close: () => socket.destroy() };
}
