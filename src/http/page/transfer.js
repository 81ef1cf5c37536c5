// One file on its way to the gateway: one request, its progress, its answer. XMLHttpRequest, because
// fetch tells nothing about the bytes already sent. Knows no document.

import { address, Problem } from './api.js';

/** Random enough to name one upload; `crypto.randomUUID` is missing on plain http. */
export function freshKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * Sends `file`. Returns `{done, cancel}`: `done` settles with the gateway's answer or throws a `Problem`
 * (code `cancelled` when `cancel()` was called). `progress(sentBytes)` is told as bytes leave,
 * `sent()` once after the last of them.
 */
export function transfer({ file, session, kind, key, progress, sent }) {
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append('recording_type', kind);
  form.append('recording', file, file.name);

  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => progress(scaled(event, file.size));
    request.upload.onload = () => sent();
    request.onabort = () => reject(new Problem({ code: 'cancelled', detail: 'Cancelled.' }));
    request.onerror = () =>
      reject(new Problem({ code: 'unreachable', detail: 'The connection broke before the gateway answered. Retry sends it again; it can’t be stored twice.' }));
    request.onload = () => {
      const header = (name) => request.getResponseHeader(name);
      if (request.status < 200 || request.status > 299) return reject(Problem.from(request.status, request.responseText, header));
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new Problem({ status: request.status, detail: 'The answer was not the JSON this page expects.' }));
      }
    };
  });

  request.open('POST', address.upload(session));
  request.setRequestHeader('accept', 'application/json');
  request.setRequestHeader('idempotency-key', key);
  request.send(form);
  return { done, cancel: () => request.abort() };
}

// The browser counts the form around the file too.
const scaled = ({ loaded, total }, size) => (total > 0 ? Math.min(size, (loaded / total) * size) : Math.min(size, loaded));

/** Bytes a second over the last seconds, steady enough to read. */
export class Pace {
  #marks = [];

  note(bytes, now = performance.now()) {
    this.#marks.push({ bytes, now });
    while (this.#marks.length > 2 && now - this.#marks[0].now > 5000) this.#marks.shift();
  }

  /** 0 until half a second was seen. */
  get perSecond() {
    const first = this.#marks[0];
    const last = this.#marks.at(-1);
    if (!first || last.now - first.now < 500) return 0;
    return ((last.bytes - first.bytes) / (last.now - first.now)) * 1000;
  }
}
