// What is on its way to the cloud, in all sessions: how much waits, what is being sent, what is parked and why, which
// deletions do not succeed and why, with a button to try again. Shows nothing while there is nothing to tell.

import { api, Problem } from './api.js';
import { announce, byId, fromTemplate, setName, setText } from './dom.js';
import { eased, flowing, listen } from './live.js';
import { count, size } from './words.js';

const LOOK_MS = 15_000;
const MOST_ROWS = 5; // of each kind: the rest is a number

const rows = new Map();

export function startCloudward() {
  const soon = eased(look);
  listen((name, data) => {
    if (name !== 'health' && !(name === 'upload' && data.state !== 'kept')) soon();
  });
  setInterval(() => flowing() || document.hidden || soon(), LOOK_MS);
  look();
}

async function look() {
  let plan, running, parked, stuck;
  try {
    plan = await api.syncPlan();
    const syncs = ['running', 'parked'].map((state) => api.syncs(state, MOST_ROWS));
    [running, parked, stuck] = await Promise.all([...syncs, api.stuckDeletions()]);
  } catch {
    return; // what was shown is the best that is known; the status line says what is wrong
  }
  show(plan, running, parked, stuck);
}

function show(plan, running, parked, stuck) {
  const waiting = Math.max(0, plan.count - running.length);
  const line = [];
  if (waiting > 0) line.push(`${count(waiting, 'recording')} ${waiting === 1 ? 'is' : 'are'} kept here and ${waiting === 1 ? 'waits' : 'wait'} for the cloud.`);
  if (plan.bytes > 0) line.push(`${size(plan.bytes)} to send.`);
  if (plan.parked > 0) line.push(`${count(plan.parked, 'recording')} ${plan.parked === 1 ? 'is' : 'are'} parked.`);
  if (stuck.length > 0) line.push(`${count(stuck.length, 'deletion')} ${stuck.length === 1 ? 'does' : 'do'} not succeed.`);
  setText(byId('cloudward-line'), line.join(' '));

  const group = byId('cloudward');
  const hadFocus = group.contains(document.activeElement);
  const jobs = new Map([...running, ...parked, ...stuck.slice(0, MOST_ROWS)].map((job) => [job.id, job]));
  for (const [id, { element }] of rows) {
    if (jobs.has(id)) continue;
    element.remove();
    rows.delete(id);
  }
  for (const [id, job] of jobs) {
    if (!rows.has(id)) rows.set(id, row());
    const { element, update } = rows.get(id);
    update(job);
    // Moving an element takes its focus away.
    if (element.parentElement === null) byId('cloudward-jobs').append(element);
  }
  group.hidden = plan.count === 0 && plan.parked === 0 && jobs.size === 0;
  const lost = !document.activeElement?.isConnected || document.activeElement === document.body || document.activeElement.closest('[hidden]');
  if (hadFocus && lost) byId(group.hidden ? 'shelf-heading' : 'cloudward-heading').focus();
}

// The deletion of a whole session names no file.
const named = (job) => job.filename ?? 'The whole session';

function row() {
  const { element, parts } = fromTemplate('job-row');
  let job = null;
  parts.retry.addEventListener('click', async () => {
    if (parts.retry.ariaBusy === 'true') return;
    parts.retry.ariaBusy = 'true'; // not disabled: that would drop the focus
    try {
      await api.retryJob(job.id);
      announce(`${named(job)} is tried again.`);
    } catch (error) {
      setText(parts.state, error instanceof Problem ? error.detail : String(error));
    }
    await look();
    parts.retry.ariaBusy = 'false';
  });
  function update(now) {
    job = now;
    const deletes = job.kind !== 'sync';
    const failed = deletes || job.state === 'parked';
    element.dataset.state = failed ? 'parked' : job.state;
    setName(parts.title, named(job));
    const how = deletes ? `Deleted, but not gone after ${job.attempts} tries: ${job.last_error}` : failed ? `Parked: ${job.last_error}` : 'Being sent to the cloud.';
    setText(parts.state, `Session ${job.session_id}. ${how}`);
    parts.retry.hidden = !failed;
    parts.retry.setAttribute('aria-label', `Try again to ${deletes ? 'delete' : 'send'} ${named(job)}`);
  }
  return { element, update };
}
