// A list that is read page by page and refreshed in place: rows that stay keep their elements, so focus,
// selection and an opened row survive. Knows neither recordings nor sessions.

export const PAGE_ROWS = 50;

export class PagedList {
  #rows = new Map();
  #pages = 1;
  #cursor = null;
  #running = null;

  /**
   * `read(cursor, signal)` answers `{items, next_cursor, …}`; `keyOf(item)` names an item;
   * `createRow(item)` answers `{element, update(item)}`; `leaves(element)` hears of a row that a refresh takes away.
   */
  constructor({ container, read, keyOf, createRow, leaves = () => {} }) {
    Object.assign(this, { container, read, keyOf, createRow, leaves });
  }

  get length() { return this.#rows.size; }
  get pages() { return this.#pages; }
  get hasMore() { return this.#cursor !== null; }
  get busy() { return this.#running !== null; }

  /** Reads again as many pages as are shown. Null when something newer took over. */
  refresh() {
    return this.#run(async (signal) => {
      const items = new Map();
      let cursor = null;
      let answer = {};
      let degraded = false;
      for (let page = 0; page < this.#pages && (page === 0 || cursor); page += 1) {
        answer = await this.read(cursor, signal);
        for (const item of answer.items) items.set(this.keyOf(item), item);
        cursor = answer.next_cursor ?? null;
        degraded ||= Boolean(answer.degraded);
      }
      return () => {
        this.#cursor = cursor;
        this.#replace(items);
        return { ...answer, degraded };
      };
    });
  }

  /** Reads the next page and appends it; answers with the first new row, too. */
  more() {
    return this.#run(async (signal) => {
      const answer = await this.read(this.#cursor, signal);
      return () => {
        this.#cursor = answer.next_cursor ?? null;
        this.#pages += 1;
        const fresh = answer.items.filter((item) => !this.#rows.has(this.keyOf(item)));
        const added = fresh.map((item) => this.#add(item, null));
        return { ...answer, firstNew: added[0]?.element ?? null };
      };
    });
  }

  /** Empties the list and forgets what is under way. */
  clear() {
    this.#running?.abort();
    this.#running = null;
    this.#rows.clear();
    this.container.replaceChildren();
    this.#pages = 1;
    this.#cursor = null;
  }

  async #run(work) {
    this.#running?.abort();
    const mine = (this.#running = new AbortController());
    try {
      const apply = await work(mine.signal);
      return this.#running === mine ? apply() : null;
    } catch (error) {
      if (this.#running !== mine || mine.signal.aborted) return null;
      throw error;
    } finally {
      if (this.#running === mine) this.#running = null;
    }
  }

  #add(item, before) {
    const row = this.createRow(item);
    row.update(item);
    this.#rows.set(this.keyOf(item), row);
    this.container.insertBefore(row.element, before);
    return row;
  }

  #replace(items) {
    for (const [key, row] of this.#rows) {
      if (items.has(key)) continue;
      this.leaves(row.element);
      row.element.remove();
      this.#rows.delete(key);
    }
    // Only rows out of place are moved: moving an element takes its focus away.
    let next = this.container.firstElementChild;
    for (const [key, item] of items) {
      const row = this.#rows.get(key);
      if (!row) {
        this.#add(item, next);
      } else {
        row.update(item);
        if (row.element === next) next = next.nextElementSibling;
        else this.container.insertBefore(row.element, next);
      }
    }
  }
}
