//! Moving an embedded catalogue to PostgreSQL. Whole or not at all: a target that has rows of another origin is left
//! alone, an interrupted copy is continued by a repeat, and a gateway starts neither on a half-made copy nor on what
//! was copied away, for what was deleted since would come back.
//!
//! How rows get across is the business of `sql::transfer`.

use serde::Serialize;

use super::sql::SqlCatalog;
use super::{CatalogError, Gateways};

/// Written in the target: the gateway whose catalogue it was, with [`COPYING`] behind it until the copy is complete.
const COPIED_FROM: &str = "copied_from";
const COPYING: &str = " copying";
/// Written in the source when the copy is complete.
const MOVED_TO: &str = "moved_to";
const POSTGRES: &str = "postgres";
/// What the copy itself writes down is no part of it.
const OWN_FACTS: [&str; 2] = [COPIED_FROM, MOVED_TO];

/// One table after the copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TableCopy {
    /// Its name.
    pub table: String,
    /// Rows in the source.
    pub source: u64,
    /// Rows in the target.
    pub target: u64,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target is not empty. It was not changed.
    #[error("the target has rows that are not a copy of this catalogue; give an empty database")]
    Occupied,
    /// A catalogue could not be used. What was copied stays; a repeat goes on.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Why a gateway must not run on a catalogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotUsable {
    /// The copy into it was interrupted.
    #[error("the copy into this catalogue was interrupted; run `recording-gateway catalogue copy` again")]
    HalfCopied,
    /// It was copied to PostgreSQL, and is of that day.
    #[error(
        "this embedded catalogue was copied to PostgreSQL and is no longer true; set DATABASE_URL, or move .catalog/catalog.sqlite away to begin anew"
    )]
    Moved,
}

/// Copies every table of `from`, which is embedded, to `to`, which is on PostgreSQL, in batches, and compares the
/// counts. Nobody else changes `from` meanwhile. A copy that was complete before is compared and not written again.
///
/// # Errors
/// After an error what was copied stays in the target; a repeat goes on.
pub async fn copy(from: &SqlCatalog, to: &SqlCatalog) -> Result<Vec<TableCopy>, CopyError> {
    let tables = from.tables().await?;
    let complete = from.gateway_id().as_str();
    let copying = format!("{complete}{COPYING}");
    let claimed = to.claim_when_empty(&tables, COPIED_FROM, &copying).await?;
    let is_running = claimed.as_deref() == Some(copying.as_str());
    if !is_running && claimed.as_deref() != Some(complete) {
        return Err(CopyError::Occupied);
    }
    let mut copies = Vec::new();
    for table in &tables {
        if is_running {
            let mut at = 0;
            loop {
                let batch = from.read_batch(table, at).await?;
                if batch.count == 0 {
                    break;
                }
                to.write_batch(table, &batch).await?;
                at = batch.last;
            }
        }
        let (source, target) = (from.count(table, OWN_FACTS).await?, to.count(table, OWN_FACTS).await?);
        copies.push(TableCopy { table: table.name.clone(), source, target });
    }
    if is_running && copies.iter().all(|copy| copy.source == copy.target) {
        // In this order there is no moment at which both could be run on.
        from.set_fact(MOVED_TO, POSTGRES).await?;
        to.set_fact(COPIED_FROM, complete).await?;
    }
    Ok(copies)
}

/// Whether a gateway may run on it.
///
/// # Errors
/// [`CatalogError`] if that cannot be asked.
pub async fn usable(catalog: &SqlCatalog) -> Result<Result<(), NotUsable>, CatalogError> {
    if catalog.fact(COPIED_FROM).await?.is_some_and(|from| from.ends_with(COPYING)) {
        return Ok(Err(NotUsable::HalfCopied));
    }
    let moved = catalog.fact(MOVED_TO).await?.is_some();
    Ok(if moved { Err(NotUsable::Moved) } else { Ok(()) })
}
