// The gateway's HTTP interface as the page uses it: addresses, JSON calls, errors.
// The only module that builds an address; every piece of a path is encoded here.
// Nothing in it touches the document.

const base = new URL('.', location.href);
const at = (...pieces) => new URL(pieces.map(encodeURIComponent).join('/'), base).href;

export const address = {
  upload: (session) => at('recordings', 'upload', session),
  session: (session) => at('recordings', session),
  recording: (session, filename) => at('recordings', session, filename),
  content: (session, filename) => at('recordings', session, filename, 'content'),
  // Through the gateway, because browsers ignore the wish to save a file that another origin serves.
  save: (session, filename) => `${at('recordings', session, filename, 'content')}?via=proxy`,
  events: at('events'),
  page: (session) => `${base.href}#s=${encodeURIComponent(session)}`,
};

/** What went wrong, in the gateway's words (RFC 9457) or, when it said none, in ours. */
export class Problem extends Error {
  constructor({ status = 0, detail, code = 'unknown', requestId = null }) {
    super(detail);
    Object.assign(this, { status, detail, code, requestId });
  }

  /** Reads a problem from the text of an answer that was not a success. */
  static from(status, text, headers) {
    let body = {};
    try {
      body = JSON.parse(text) ?? {};
    } catch {
      // A proxy in front may answer with a page of its own.
    }
    return new Problem({
      status,
      detail: body.detail || body.title || `The server answered with status ${status}.`,
      code: body.code,
      requestId: body.request_id || headers?.('x-request-id') || null,
    });
  }

  static unreachable() {
    return new Problem({ code: 'unreachable', detail: 'The gateway did not answer. Check the connection, then try again.' });
  }
}

/** Asks for JSON; throws `Problem`, or the abort error when `signal` fired. */
async function call(url, { method = 'GET', signal, accept = (status) => status < 400 } = {}) {
  let answer, text;
  try {
    answer = await fetch(url, { method, signal, cache: 'no-store', headers: { accept: 'application/json' } });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw Problem.unreachable();
  }
  if (!accept(answer.status)) throw Problem.from(answer.status, text, (name) => answer.headers.get(name));
  try {
    return { status: answer.status, body: text ? JSON.parse(text) : {} };
  } catch {
    throw new Problem({ status: answer.status, detail: 'The answer was not the JSON this page expects. Is another server at this address?' });
  }
}

const paged = (url, limit, cursor) => {
  const asked = new URL(url);
  asked.searchParams.set('limit', limit);
  if (cursor) asked.searchParams.set('cursor', cursor);
  return asked.href;
};

export const api = {
  config: () => call(at('config.json')).then(({ body }) => body),
  // An unready gateway answers 503 and still says what is wrong.
  health: () => call(at('readyz'), { accept: (status) => status < 400 || status === 503 }).then(({ body }) => body),
  sessions: (limit, cursor, signal) => call(paged(at('recordings'), limit, cursor), { signal }).then(({ body }) => body),
  async recordings(session, limit, cursor, signal) {
    try {
      return (await call(paged(at('recordings', session, 'list'), limit, cursor), { signal })).body;
    } catch (error) {
      if (error instanceof Problem && error.status === 404) return { recordings: [], total_count: 0 };
      throw error;
    }
  },
  remove: (session, filename) => call(address.recording(session, filename), { method: 'DELETE' }),
  /** What a sync would send: `{count, bytes, parked}`; nothing where there is no cloud. */
  async syncPlan() {
    const { status, body } = await call(`${at('sync')}?dry_run=true`, { method: 'POST', accept: (status) => status < 400 || status === 409 });
    return status === 409 ? { count: 0, bytes: 0, parked: 0 } : body;
  },
  /** Syncs in a state, newest first. */
  syncs: (state, limit, session) => {
    const asked = new URL(paged(at('jobs'), limit));
    asked.search += `&kind=sync&state=${state}${session ? `&session_id=${encodeURIComponent(session)}` : ''}`;
    return call(asked.href).then(({ body }) => body.jobs ?? []);
  },
  /** Deletions that fail again and again (the gateway calls them stuck from the third try on), of the newest that wait. */
  async stuckDeletions() {
    const kinds = ['delete', 'delete_local', 'delete_session'];
    const ask = (kind) => call(`${paged(at('jobs'), 100)}&kind=${kind}&state=waiting`).then(({ body }) => body.jobs ?? []);
    return (await Promise.all(kinds.map(ask))).flat().filter((job) => job.attempts >= 3 && job.last_error);
  },
  retryJob: (id) => call(at('jobs', id, 'retry'), { method: 'POST' }).then(({ body }) => body),
  /** Has a parked recording tried again: its job, or its session's syncs where it has none. */
  async tryAgain(session, filename) {
    for (const state of ['parked', 'cancelled']) {
      const job = (await api.syncs(state, 1000, session)).find((known) => known.filename === filename);
      if (job) return api.retryJob(job.id);
    }
    return call(`${at('sync')}?session_id=${encodeURIComponent(session)}`, { method: 'POST' });
  },
  removeSession: (session) => call(address.session(session), { method: 'DELETE' }),
  /** Why a recording can't be read: null when its first byte can. */
  async whyUnreadable(session, filename) {
    try {
      const answer = await fetch(address.save(session, filename), { headers: { range: 'bytes=0-0' } });
      return answer.ok ? null : Problem.from(answer.status, await answer.text(), (name) => answer.headers.get(name));
    } catch {
      return Problem.unreachable();
    }
  },
};
