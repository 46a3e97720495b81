#!/usr/bin/env -S node --experimental-websocket
// Takes a picture of the page as Chromium shows it, for whoever changes it. Node 20.10 or later and Debian's chromium, nothing to install.
//
//   deploy/dashboard/screenshot.mjs URL FILE.png [WIDTH] [light|dark] [TOP] [HEIGHT]
//
// URL is that of the page, as Prometheus serves it. Below 600 wide it is a phone. TOP and HEIGHT choose a part; else all is shown.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [url, file, width = "1440", theme = "light", top = "0", height = "0"] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: screenshot.mjs URL FILE.png [WIDTH] [light|dark] [TOP] [HEIGHT]");
  process.exit(2);
}
const profile = mkdtempSync(join(tmpdir(), "screenshot-"));
const browser = spawn("chromium", ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
  `--user-data-dir=${profile}`, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
const limit = setTimeout(() => (console.error("no picture within 60 s"), browser.kill(), process.exit(1)), 60_000);

const address = await new Promise((found) => {
  let said = "";
  browser.stderr.on("data", (text) => {
    said += text;
    const match = said.match(/DevTools listening on (ws:\S+)/);
    if (match) found(match[1]);
  });
});
const pages = await (await fetch(`http://${new URL(address).host}/json`)).json();
const socket = new WebSocket(pages.find(({ type }) => type === "page").webSocketDebuggerUrl);
await new Promise((open) => socket.addEventListener("open", open));
const waiting = new Map();
socket.addEventListener("message", ({ data }) => {
  const { id, result, error } = JSON.parse(data);
  if (error) console.error(error.message);
  waiting.get(id)?.(result);
});
let count = 0;
const call = (method, params = {}) => new Promise((done) => {
  waiting.set(++count, done);
  socket.send(JSON.stringify({ id: count, method, params }));
});
const evaluate = async (expression) => (await call("Runtime.evaluate", { expression })).result.value;

const phone = Number(width) < 600;
const see = (tall) => call("Emulation.setDeviceMetricsOverride", { width: Number(width), height: tall, deviceScaleFactor: 1, mobile: phone });
await see(900);
await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: theme }] });
await call("Page.navigate", { url });
while (!(await evaluate("document.getElementById('state')?.textContent"))) await new Promise((again) => setTimeout(again, 100));
console.log(await evaluate("document.getElementById('state').textContent"));
const whole = await evaluate("document.documentElement.scrollHeight");
await see(whole);
const clip = { x: 0, y: Number(top), width: Number(width), height: Number(height) || whole, scale: 1 };
const { data } = await call("Page.captureScreenshot", { format: "png", clip, captureBeyondViewport: true });
writeFileSync(file, Buffer.from(data, "base64"));
console.log(`${file}: ${clip.width} x ${clip.height} of ${whole}; as wide as the screen: ${await evaluate("document.documentElement.scrollWidth <= innerWidth")}`);

clearTimeout(limit);
socket.close();
browser.kill();
browser.on("exit", () => rmSync(profile, { recursive: true, force: true }));
