//! What a session of the gateway holds already, and which of it belongs to which file. The one source is the gateway's
//! listing, never what this program remembers of an earlier run.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::cli::client::Gateway;
use crate::cli::ls::all_pages;

/// A recording as the gateway lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub filename: String,
    pub size: u64,
    /// `None` for what came in past the gateway and was not read yet.
    pub sha256: Option<String>,
    pub original: Option<String>,
    /// It is listed, but no store has its bytes.
    pub missing: bool,
}

/// One session's listing.
#[derive(Debug, Default)]
pub(super) struct Known {
    rows: Vec<Row>,
    /// Names of recordings that are the copy of a file of this run.
    claimed: HashSet<String>,
    /// Digests found by reading a recording back.
    read_back: HashMap<String, String>,
    pub degraded: bool,
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub size: u64,
    pub sha256: &'a str,
    pub original: &'a str,
    /// Names and sizes of all files that go to this session: each gets its own recording first.
    pub siblings: &'a HashMap<String, u64>,
}

/// Whether the session has the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Under this name, which is claimed now.
    Same(String),
    /// It has no such recording.
    Nothing,
    /// This one has the same size and an unknown digest: it has to be read back to know.
    Unread(String),
}

impl Known {
    /// Asks for the listing, to its last page.
    pub async fn list(gateway: &Gateway, session: &str) -> anyhow::Result<Self> {
        let listing = all_pages(gateway, &[session, "list"], "recordings").await?;
        let rows = listing["recordings"].as_array().into_iter().flatten().filter_map(row_of).collect();
        Ok(Self { rows, degraded: listing["degraded"] == true, ..Self::default() })
    }

    /// Asks again, keeping which recording belongs to which file.
    pub async fn refresh(&mut self, gateway: &Gateway, session: &str) -> anyhow::Result<()> {
        let fresh = Self::list(gateway, session).await?;
        (self.rows, self.degraded) = (fresh.rows, self.degraded | fresh.degraded);
        Ok(())
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Notes that this recording is the copy of a file.
    pub fn claim(&mut self, filename: &str) {
        self.claimed.insert(filename.to_owned());
    }

    /// Looks for a recording with these bytes that is no other file's copy, and claims it. One that was sent under the
    /// same name goes first. One that seems to be the copy of another file of this run is left to that: files with equal
    /// bytes are as many recordings.
    pub fn find(&mut self, wanted: &Wanted) -> Found {
        let read_back = &self.read_back;
        let digest = |row: &Row| row.sha256.clone().or_else(|| read_back.get(&row.filename).cloned());
        let own = |row: &Row| row.original.as_deref() == Some(wanted.original);
        let siblings_own = |row: &Row| {
            let size = row.original.as_ref().and_then(|original| wanted.siblings.get(original));
            !own(row) && size == Some(&row.size)
        };
        let candidates: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.size == wanted.size && !row.missing && !self.claimed.contains(&row.filename))
            .filter(|row| !siblings_own(row))
            .collect();
        let equal = candidates.iter().filter(|row| digest(row).as_deref() == Some(wanted.sha256));
        let same = equal.min_by_key(|row| !own(row));
        let unread = candidates.iter().find(|row| digest(row).is_none());
        match (same, unread) {
            (Some(row), _) => {
                let filename = row.filename.clone();
                self.claimed.insert(filename.clone());
                Found::Same(filename)
            }
            (None, Some(row)) => Found::Unread(row.filename.clone()),
            (None, None) => Found::Nothing,
        }
    }

    /// The digest found by reading the recording back.
    pub fn noted_digest(&self, filename: &str) -> Option<&str> {
        self.read_back.get(filename).map(String::as_str)
    }

    /// Notes the digest of a recording that was read back.
    pub fn note_digest(&mut self, filename: String, sha256: String) {
        self.read_back.insert(filename, sha256);
    }

    /// Forgets a recording that is gone since it was listed.
    pub fn drop_row(&mut self, filename: &str) {
        self.rows.retain(|row| row.filename != filename);
    }
}

/// The SHA-256 in hex of a recording's bytes, read through the gateway.
pub(super) async fn read_back(gateway: &Gateway, session: &str, filename: &str) -> anyhow::Result<String> {
    let url = gateway.address(&[session, filename, "content"])?;
    let request = gateway.request(Method::GET, url).query(&[("via", "proxy")]);
    let mut bytes = gateway.open(request).await?.bytes_stream();
    let mut digest = Sha256::new();
    while let Some(block) = bytes.next().await {
        digest.update(&block.map_err(crate::cli::client::ClientError::Broken)?);
    }
    Ok(hex::encode(digest.finalize()))
}

fn row_of(row: &Value) -> Option<Row> {
    let text = |field: &str| row[field].as_str().map(str::to_owned);
    Some(Row {
        filename: text("filename")?,
        size: row["file_size"].as_u64()?,
        sha256: text("sha256"),
        original: text("original_filename"),
        missing: row["missing"] == true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(filename: &str, size: u64, sha256: Option<&str>, original: Option<&str>) -> Row {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (sha256, original) = (owned(sha256), owned(original));
        Row { filename: filename.into(), size, sha256, original, missing: false }
    }

    fn known(rows: &[Row]) -> Known {
        Known { rows: rows.to_vec(), ..Known::default() }
    }

    fn find(known: &mut Known, original: &str, siblings: &[(&str, u64)]) -> Found {
        let siblings = siblings.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        known.find(&Wanted { size: 5, sha256: "aa", original, siblings: &siblings })
    }

    fn same(filename: &str) -> Found {
        Found::Same(filename.into())
    }

    #[test]
    fn the_same_bytes_under_any_name_are_found_once() {
        let mut session = known(&[
            row("other", 5, Some("bb"), None),
            row("size", 6, Some("aa"), None),
            row("there", 5, Some("aa"), Some("from-a-browser")),
        ]);
        assert_eq!(find(&mut session, "x", &[("x", 5), ("y", 5)]), same("there"));
        assert_eq!(find(&mut session, "y", &[("x", 5), ("y", 5)]), Found::Nothing, "it is x's copy");
    }

    #[test]
    fn equal_files_get_their_own_copies() {
        let siblings = [("x", 5), ("y", 5), ("z", 9)];
        let rows = [row("1", 5, Some("aa"), Some("y")), row("2", 5, Some("aa"), Some("z"))];
        let mut session = known(&rows);
        assert_eq!(
            find(&mut session, "x", &siblings),
            same("2"),
            "z has another size: this cannot be its copy"
        );
        assert_eq!(find(&mut session, "y", &siblings), same("1"));
        let mut session = known(&rows[..1]);
        assert_eq!(find(&mut session, "x", &siblings), Found::Nothing, "that one is y's");
    }

    #[test]
    fn what_was_not_read_yet_is_not_believed_and_what_is_missing_is_not_there() {
        let mut session = known(&[
            Row { missing: true, ..row("lost", 5, Some("aa"), None) },
            row("dropped", 5, None, None),
        ]);
        assert_eq!(find(&mut session, "x", &[]), Found::Unread("dropped".into()));
        session.note_digest("dropped".into(), "bb".into());
        assert_eq!(find(&mut session, "x", &[]), Found::Nothing);
        session.note_digest("dropped".into(), "aa".into());
        assert_eq!(find(&mut session, "x", &[]), same("dropped"));
        let mut session = known(&[row("dropped", 5, None, None)]);
        session.drop_row("dropped");
        assert_eq!(find(&mut session, "x", &[]), Found::Nothing);
    }
}
