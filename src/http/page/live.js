// What happens at the gateway, as it happens: its server-sent events, handed to whoever listens. While they flow nobody
// polls; where they can't be had, everybody looks now and then as if this module weren't there. Knows no document but
// whether it is seen: a tab in the background gives its connection back, because browsers allow few of them.

import { address } from './api.js';

const NAMES = ['upload', 'sync', 'job', 'deletion', 'health'];
const AGAIN_MS = 15_000;

const listeners = new Set();
let source = null;
let again;

/** Whether events come in, so that looking by oneself is needless. */
export const flowing = () => source?.readyState === EventSource.OPEN;

/** `hear(name, data)`; `reset` says that something may have been missed. */
export function listen(hear) {
  listeners.add(hear);
}

/** Calls `work` soon after it was asked for, once for many askings, and not more often than every `pause` ms. */
export function eased(work, pause = 1000) {
  let timer;
  let last = -Infinity;
  return () => {
    if (timer) return;
    timer = setTimeout(() => {
      timer = undefined;
      last = performance.now();
      work();
    }, Math.max(150, last + pause - performance.now()));
  };
}

export function startLive() {
  document.addEventListener('visibilitychange', arrange);
  addEventListener('pagehide', close);
  addEventListener('pageshow', arrange);
  arrange();
}

function arrange() {
  if (document.hidden) close();
  else open();
}

function open() {
  if (source || !globalThis.EventSource) return;
  clearTimeout(again);
  source = new EventSource(address.events);
  const tell = (name, data) => listeners.forEach((hear) => hear(name, data));
  source.addEventListener('open', () => tell('reset', {}));
  source.addEventListener('reset', () => tell('reset', {}));
  for (const name of NAMES) source.addEventListener(name, ({ data }) => tell(name, JSON.parse(data)));
  source.addEventListener('error', () => {
    // A broken connection is taken up by the browser; a refusal is not.
    if (source?.readyState !== EventSource.CLOSED) return;
    close();
    again = setTimeout(arrange, AGAIN_MS);
  });
}

function close() {
  clearTimeout(again);
  source?.close();
  source = null;
}
