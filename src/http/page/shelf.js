// The right side: the recordings of one session, or all sessions. Reads, refreshes, pages, says what is
// missing, deletes. The rows themselves are in rows.js.

import { address, api } from './api.js';
import { ask, play } from './dialogs.js';
import { announce, byId, copyFrom, setName, setText } from './dom.js';
import { eased, flowing, listen } from './live.js';
import { PAGE_ROWS, PagedList } from './pagedlist.js';
import { recordingRow, sessionRow } from './rows.js';
import { count, size } from './words.js';

const REFRESH_MS = 15_000;
const AUTO_PAGES = 4; // beyond this a refresh is a burden: only on demand

let view = null; // {session} or {} for all sessions; null while there is nothing to list
let list = null;
let cloud = true;

export function startShelf() {
  byId('refresh').addEventListener('click', () => refresh({ aloud: true }));
  byId('more').addEventListener('click', more);
  byId('share').addEventListener('click', () => copyFrom(byId('share'), address.page(view.session), 'Link copied'));
  byId('delete-session').addEventListener('click', removeSession);
  byId('empty-copy').addEventListener('click', () => copyFrom(byId('empty-copy'), byId('empty-curl').textContent));
  byId('notice-close').addEventListener('click', () => {
    byId('notice').hidden = true;
    byId('shelf-heading').focus();
  });
  setInterval(() => flowing() || quietly(), REFRESH_MS);
  const soon = eased(() => (list?.busy ? soon() : quietly()));
  listen((name, data) => concerns(name, data) && soon());
  document.addEventListener('visibilitychange', quietly);
}

/** Whether this gateway has a cloud that local recordings wait for. */
export function setCloud(configured) {
  if (cloud === configured) return;
  cloud = configured;
  refresh();
}

/** Whether an event changes what is shown. */
function concerns(name, data) {
  if (name === 'reset') return true;
  const changes = { upload: ['kept'], sync: ['done', 'parked', 'cancelled', 'waiting'], deletion: ['pending', 'done'] };
  return Boolean(changes[name]?.includes(data.state)) && (!view?.session || view.session === data.session_id);
}

export function showSession(session) {
  open({ session }, session, {
    read: (cursor, signal) => api.recordings(session, PAGE_ROWS, cursor, signal).then((answer) => ({ ...answer, items: answer.recordings ?? [] })),
    keyOf: (item) => item.filename,
    createRow: () => recordingRow(session, { cloudInUse: () => cloud, actions: { play: (item) => play(session, item), copy: copyAddress, remove, tryAgain } }),
    leaves: handFocusOn,
  });
}

export function showSessions() {
  open({}, 'All sessions', {
    read: (cursor, signal) => api.sessions(PAGE_ROWS, cursor, signal).then((answer) => ({ ...answer, items: answer.sessions ?? [] })),
    keyOf: (item) => item.session_id,
    createRow: sessionRow,
  });
}

/** Nothing to list, for example because the session's name isn't one. */
export function showNothing(title, text) {
  open(null, 'Recordings', null);
  showEmpty(title, text, null);
}

/** Reads again when `session` is what is shown, or when all sessions are. */
export function touched(session) {
  if (list && (!view.session || view.session === session)) refresh();
}

function open(next, heading, source) {
  list?.clear();
  byId('rows').replaceChildren();
  view = next;
  list = source && new PagedList({ container: byId('rows'), ...source });
  setName(byId('shelf-heading'), heading);
  setText(byId('shelf-count'), list ? 'Reading…' : '');
  for (const id of ['degraded', 'notice', 'empty', 'more', 'more-note']) byId(id).hidden = true;
  for (const id of ['share', 'delete-session']) byId(id).hidden = !view?.session;
  byId('delete-session').disabled = true;
  byId('refresh').hidden = !list;
  if (list) refresh();
}

async function refresh({ aloud = false } = {}) {
  const asked = list;
  if (!asked) return;
  byId('refresh').dataset.busy = '';
  try {
    const answer = await asked.refresh();
    if (answer && asked === list) {
      settle(answer);
      if (aloud) announce(`Refreshed. ${byId('shelf-count').textContent}`);
    }
  } catch (problem) {
    if (asked === list) unreadable(problem);
  } finally {
    if (asked === list) delete byId('refresh').dataset.busy;
  }
}

function quietly() {
  if (document.hidden || !list || list.busy || list.pages > AUTO_PAGES) return;
  refresh();
}

async function more() {
  byId('more').setAttribute('aria-busy', 'true');
  try {
    const answer = await list.more();
    if (!answer) return;
    settle(answer);
    announce(`${list.length} shown.`);
    answer.firstNew?.querySelector('a, button:not([hidden])')?.focus({ preventScroll: true });
  } catch (problem) {
    tell(problem.detail, problem.requestId);
  } finally {
    byId('more').removeAttribute('aria-busy');
  }
}

/** Everything around the rows, after they were read. */
function settle(answer) {
  const total = answer.total_count ?? list.length;
  const things = view.session ? count(total, 'recording') : count(total, 'session');
  setText(byId('shelf-count'), total === 0 ? '' : list.length < total ? `${things}, ${list.length} shown` : things);
  byId('delete-session').disabled = total === 0;
  byId('delete-session').dataset.count = total;

  byId('degraded').hidden = !answer.degraded;
  if (answer.degraded) {
    const stores = (answer.unavailable_stores ?? []).map((store) => (store === 'supabase' ? 'Supabase' : store)).join(' and ') || 'The cloud';
    setText(byId('degraded'), `${stores} can’t be asked right now. This is what the gateway knows by itself; recordings only the cloud knows may be missing. New ones are kept here and move there later.`);
  }
  byId('more').hidden = !list.hasMore;
  byId('more-note').hidden = list.pages <= AUTO_PAGES;
  setText(byId('more-note'), 'A list this long is only refreshed when you ask.');

  byId('empty').hidden = list.length > 0;
  if (list.length > 0) return;
  if (view.session) showEmpty('Nothing in this session yet', 'Choose a file, drop one on the page, or send one from a terminal:', view.session);
  else showEmpty('No recordings yet', 'A session appears here with its first recording. Drop a file on the page, or send one from a terminal:', 'my_first_session');
}

function showEmpty(title, text, session) {
  byId('empty').hidden = false;
  setText(byId('empty-title'), title);
  setText(byId('empty-text'), text);
  byId('empty-snippet').hidden = session === null;
  if (session !== null) setText(byId('empty-curl'), `curl -F "recording=@interview.webm" -F "recording_type=session" ${address.upload(session)}`);
}

function unreadable(problem) {
  if (list.length === 0) setText(byId('shelf-count'), '');
  byId('degraded').hidden = false;
  setText(byId('degraded'), `The list can’t be read. ${problem.detail}${problem.requestId ? ` Request ${problem.requestId}` : ''}`);
}

/** A message that stays until it is dismissed or another takes its place. */
function tell(text, requestId = null) {
  byId('notice').hidden = false;
  setName(byId('notice-text'), requestId ? `${text} Request ${requestId}` : text);
  announce(byId('notice-text').textContent);
}

function copyAddress(item, button) {
  return copyFrom(button, item.public_url || address.content(view.session, item.filename));
}

async function tryAgain(item, button) {
  const { session } = view;
  if (button.ariaBusy === 'true') return;
  button.ariaBusy = 'true'; // not disabled: that would drop the focus
  try {
    await api.tryAgain(session, item.filename);
    announce(`${item.original_filename || item.filename} is tried again.`);
  } catch (problem) {
    tell(problem.detail, problem.requestId);
  }
  button.ariaBusy = 'false';
  if (view?.session === session) await refresh();
}

async function remove(item, button) {
  const { session } = view;
  const title = item.original_filename || item.filename;
  const sure = await ask({
    title: 'Delete this recording?',
    name: title === item.filename ? item.filename : `${title}\n${item.filename}`,
    text: `${size(item.file_size)}. Every copy is removed, for good.`,
    confirm: 'Delete',
  });
  if (!sure) return;
  const row = button.closest('.row');
  row.setAttribute('aria-busy', 'true');
  try {
    const { status, body } = await api.remove(session, item.filename);
    handFocusOn(row);
    row.hidden = true;
    said(status, body, `${title} is deleted.`);
  } catch (problem) {
    row.removeAttribute('aria-busy');
    tell(problem.detail, problem.requestId);
  }
  if (view?.session === session) await refresh();
}

/** The row goes, and the focus that is in it would go with it: the next one takes it. */
function handFocusOn(row) {
  if (!row.contains(document.activeElement)) return;
  const rows = [...row.parentElement.children].filter((other) => other === row || !other.hidden);
  const at = rows.indexOf(row);
  const neighbour = rows[at + 1] ?? rows[at - 1];
  (neighbour?.querySelector('[data-part="delete"]') ?? byId('shelf-heading')).focus();
}

async function removeSession() {
  const { session } = view;
  const total = Number(byId('delete-session').dataset.count);
  const sure = await ask({
    title: 'Delete the whole session?',
    name: session,
    text: `${count(total, 'recording')} and every copy of them will be removed, for good.`,
    confirm: total === 1 ? 'Delete 1 recording' : `Delete ${total.toLocaleString()} recordings`,
  });
  if (!sure) return;
  try {
    const { status, body } = await api.removeSession(session);
    said(status, body, `Session ${session} is deleted.`);
    byId('shelf-heading').focus();
  } catch (problem) {
    tell(problem.detail, problem.requestId);
  }
  if (view?.session === session) await refresh();
}

/** A finished deletion is only spoken; one that still waits for the cloud stays on the page. */
function said(status, body, otherwise) {
  if (status === 202 || body.pending?.length) tell(body.message || 'Deletion from the cloud is pending.');
  else announce(body.message || otherwise);
}
