// The queue of files to send and its rows: checks before sending, two at a time, progress, outcome,
// cancel and retry. What a row says about an outcome is decided here and nowhere else.

import { announce, byId, fromTemplate, setName, setText } from './dom.js';
import { listen } from './live.js';
import { freshKey, Pace, transfer } from './transfer.js';
import { duration, fileFault, size } from './words.js';

const AT_ONCE = 2;
const QUARTER_AFTER_MS = 4000; // shorter uploads are over before a spoken quarter helps

const entries = new Set();
let config = {};
let whenStored = () => {};

/** `stored(session)` is called whenever the gateway may have a new recording. */
export function startUploads({ stored }) {
  whenStored = stored;
  byId('queue-clear').addEventListener('click', () => {
    for (const entry of [...entries]) if (entry.state === 'done') discard(entry);
    byId('files').focus();
  });
  listen((name, { state, session_id, filename }) => {
    if (name !== 'sync' || state !== 'done') return;
    const entry = [...entries].find((sent) => sent.state === 'done' && sent.session === session_id && sent.filename === filename);
    if (!entry) return;
    show(entry, 'done', 'In the cloud', `Recording moved to Supabase: ${filename}`);
    entry.element.dataset.place = 'home';
  });
  addEventListener('beforeunload', (event) => {
    if ([...entries].some(isActive)) event.preventDefault();
  });
}

export function setLimits(settings) {
  config = settings;
}

/** Queues files for the session and type as they are now; later edits of the fields don't move them. */
export function enqueue(files, session, kind) {
  const known = entries.size;
  for (const file of files) {
    const entry = { file, session, kind, key: freshKey(), state: 'waiting', ...fromTemplate('upload-row') };
    entries.add(entry);
    dress(entry);
    const fault = fileFault(file, config);
    if (fault) refuse(entry, fault);
  }
  pump();
  [...entries][known]?.element.scrollIntoView({ block: 'nearest' });
}

const isActive = ({ state }) => state === 'waiting' || state === 'sending' || state === 'storing';

function dress(entry) {
  const { element, parts, file } = entry;
  setName(parts.name, file.name);
  parts.name.title = `For session ${entry.session}`;
  parts.progress.setAttribute('aria-label', `Progress of ${file.name}`);
  for (const [part, verb] of [['cancel', 'Cancel'], ['retry', 'Retry'], ['dismiss', 'Dismiss']]) {
    parts[part].setAttribute('aria-label', `${verb} ${file.name}`);
  }
  parts.cancel.addEventListener('click', () => cancel(entry));
  parts.retry.addEventListener('click', () => {
    show(entry, 'waiting', 'Waiting for its turn');
    parts.cancel.focus();
    pump();
  });
  parts.dismiss.addEventListener('click', () => {
    const next = element.nextElementSibling ?? element.previousElementSibling;
    discard(entry);
    (next?.querySelector('button:not([hidden])') ?? byId('files')).focus();
  });
  show(entry, 'waiting', 'Waiting for its turn');
  byId('uploads').append(element);
}

function pump() {
  const busy = [...entries].filter(({ state }) => state === 'sending' || state === 'storing').length;
  for (const entry of [...entries].filter(({ state }) => state === 'waiting').slice(0, Math.max(0, AT_ONCE - busy))) send(entry);
}

async function send(entry) {
  const { file, session, kind, key } = entry;
  const pace = new Pace();
  const started = performance.now();
  let quarter = 0;
  show(entry, 'sending', `0 B of ${size(file.size)}`);
  entry.running = transfer({
    file, session, kind, key,
    progress(bytes) {
      if (entry.state !== 'sending') return;
      pace.note(bytes);
      entry.parts.progress.value = bytes / file.size;
      setText(entry.parts.state, pacing(bytes, file.size, pace.perSecond));
      const reached = Math.floor((bytes / file.size) * 4);
      if (reached > quarter && reached < 4 && performance.now() - started > QUARTER_AFTER_MS) announce(`${file.name}: ${reached * 25} percent sent`);
      quarter = reached;
    },
    sent: () => entry.state === 'sending' && show(entry, 'storing', 'All sent. Waiting until it is stored…'),
  });
  try {
    finish(entry, await entry.running.done);
  } catch (problem) {
    fail(entry, problem);
  }
  pump();
}

function pacing(bytes, total, perSecond) {
  const left = perSecond > 0 ? `, ${duration((total - bytes) / perSecond)} left` : '';
  return `${size(bytes)} of ${size(total)}${perSecond > 0 ? `, ${size(perSecond)}/s` : ''}${left}`;
}

function finish(entry, answer) {
  entry.filename = answer.filename;
  const inCloud = answer.storage_type === 'supabase';
  show(entry, 'done', inCloud ? 'In the cloud' : 'Kept locally', answer.message);
  // Without a cloud the disk is where recordings belong; with one it is second best.
  entry.element.dataset.place = inCloud || config.cloud_configured === false ? 'home' : 'fallback';
  announce(answer.message || `${entry.file.name} is stored.`);
  whenStored(entry.session);
}

function fail(entry, problem) {
  if (problem.code === 'cancelled') {
    // After the last byte the gateway may already be keeping it: say so instead of promising too much.
    const late = entry.state === 'storing';
    show(entry, 'cancelled', late ? 'Stopped waiting. The gateway has every byte and may still keep it.' : 'Cancelled. Nothing was kept.');
    if (late) whenStored(entry.session);
  } else {
    show(entry, 'failed', problem.detail, problem.requestId ? `Request ${problem.requestId}` : '');
    if (problem.code === 'unreachable') whenStored(entry.session);
  }
  announce(`${entry.file.name}: ${entry.parts.state.textContent}`);
}

function refuse(entry, { reason, certain }) {
  show(entry, 'refused', reason, 'Nothing was sent.');
  entry.parts.retry.hidden = certain;
  entry.parts.retry.textContent = 'Send anyway';
  entry.parts.retry.setAttribute('aria-label', `Send ${entry.file.name} anyway`);
  announce(`${entry.file.name} was not sent. ${reason}`);
}

function cancel(entry) {
  if (entry.state === 'waiting') {
    show(entry, 'cancelled', 'Cancelled. Nothing was sent.');
  } else {
    entry.running.cancel();
  }
}

/** Puts the row into `state`; keeps the focus inside the row when the focused button disappears. */
function show(entry, state, line, fine = '') {
  const { element, parts } = entry;
  const hadFocus = element.contains(document.activeElement);
  entry.state = state;
  element.dataset.state = state;
  setText(parts.state, line);
  setName(parts.fine, fine);
  parts.fine.hidden = !fine;
  const active = isActive(entry);
  parts.progress.hidden = !active;
  if (state === 'waiting') parts.progress.value = 0;
  if (state === 'storing') parts.progress.removeAttribute('value');
  parts.cancel.hidden = !active;
  parts.retry.hidden = !(state === 'failed' || state === 'cancelled');
  parts.dismiss.hidden = active;
  if (state !== 'refused') {
    parts.retry.textContent = 'Retry';
    parts.retry.setAttribute('aria-label', `Retry ${entry.file.name}`);
  }
  if (hadFocus && document.activeElement?.closest('[hidden]')) element.querySelector('button:not([hidden])')?.focus();
  tidy();
}

function discard(entry) {
  entries.delete(entry);
  entry.element.remove();
  tidy();
}

function tidy() {
  byId('queue').hidden = entries.size === 0;
  byId('queue-clear').hidden = ![...entries].some(({ state }) => state === 'done');
}
