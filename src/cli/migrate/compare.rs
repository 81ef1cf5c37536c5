//! The end: every file of the plan against what the gateway lists now. It is asked again; what it answered to the uploads
//! proves nothing here.

use std::collections::{HashMap, HashSet};

use super::known::{Known, Row, read_back};
use super::patience::{Patience, Trouble};
use super::report::{Entry, Outcome};
use crate::cli::client::Gateway;

/// What the comparison saw.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Files whose size and digest are listed.
    pub same: u64,
    /// Recordings in the sessions.
    pub listed: u64,
    /// Places in `entries` of those that turned out different.
    pub different: Vec<usize>,
    pub degraded: bool,
}

/// Compares the entries that are said to be there, and marks those that are not.
pub(super) async fn compare(
    gateway: &Gateway,
    patience: &Patience,
    sessions: Vec<(String, Known)>,
    entries: &mut [Entry],
) -> Result<Compared, Trouble> {
    let mut of_session: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, entry) in entries.iter().enumerate() {
        if matches!(entry.outcome, Outcome::Loaded | Outcome::Skipped)
            && let Some(session) = &entry.session
        {
            of_session.entry(session.clone()).or_default().push(place);
        }
    }
    let mut compared = Compared::default();
    for (session, mut known) in sessions {
        patience.ask(async || known.refresh(gateway, &session).await).await?;
        compared.degraded |= known.degraded;
        compared.listed += known.rows().len() as u64;
        let rows: HashMap<&str, &Row> = known.rows().iter().map(|row| (row.filename.as_str(), row)).collect();
        let mut taken = HashSet::new();
        for place in of_session.remove(&session).unwrap_or_default() {
            let entry = &mut entries[place];
            let filename = entry.filename.clone().unwrap_or_default();
            let row = rows.get(filename.as_str()).copied();
            let read = match row {
                Some(row) if row.sha256.is_none() && known.noted_digest(&filename).is_none() => {
                    Some(patience.ask(async || read_back(gateway, &session, &filename).await).await?)
                }
                _ => known.noted_digest(&filename).map(str::to_owned),
            };
            match difference(entry, row, read.as_deref(), taken.insert(filename)) {
                None => compared.same += 1,
                Some(reason) => {
                    entry.differs(reason);
                    compared.different.push(place);
                }
            }
        }
    }
    Ok(compared)
}

/// How the listing differs from what is said of a file; `read` is the digest of a recording that was read back, `first`
/// false if another file has this recording.
fn difference(entry: &Entry, row: Option<&Row>, read: Option<&str>, first: bool) -> Option<String> {
    let name = entry.filename.as_deref().unwrap_or_default();
    let Some(row) = row else {
        return Some(format!(
            "the gateway does not list {name}: it was deleted there, and a deleted recording stays away for as long as \
             the gateway remembers the upload (uploads.idempotency_ttl)"
        ));
    };
    if row.missing {
        return Some(format!("the gateway lists {name} and no store has its bytes"));
    }
    if !first {
        return Some(format!("the gateway has one recording, {name}, for this and another file"));
    }
    if Some(row.size) != entry.size {
        return Some(format!("the gateway lists {name} with {} bytes", row.size));
    }
    let sha256 = row.sha256.as_deref().or(read);
    if sha256 != entry.sha256.as_deref() {
        return Some(format!("the gateway lists {name} with the SHA-256 {}", sha256.unwrap_or("of nobody")));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_told() {
        let entry = Entry {
            path: "s/a.webm".into(),
            session: Some("s".into()),
            filename: Some("n".into()),
            size: Some(5),
            content_type: None,
            sha256: Some("aa".into()),
            outcome: Outcome::Loaded,
            reason: None,
            to_decide: false,
        };
        let row =
            Row { filename: "n".into(), size: 5, sha256: Some("aa".into()), original: None, missing: false };
        let of = |row: &Row, read, first| difference(&entry, Some(row), read, first);
        assert_eq!(of(&row, None, true), None);
        let unread = Row { sha256: None, ..row.clone() };
        assert_eq!(of(&unread, Some("aa"), true), None);
        assert!(difference(&entry, None, None, true).unwrap().contains("does not list n"));
        assert!(of(&row, None, false).unwrap().contains("another file"));
        assert!(of(&unread, Some("bb"), true).unwrap().contains("SHA-256 bb"));
        for (wrong, words) in [
            (Row { missing: true, ..row.clone() }, "no store"),
            (Row { size: 6, ..row.clone() }, "6 bytes"),
            (Row { sha256: Some("bb".into()), ..row.clone() }, "SHA-256 bb"),
        ] {
            assert!(of(&wrong, None, true).unwrap().contains(words), "{words}");
        }
    }
}
