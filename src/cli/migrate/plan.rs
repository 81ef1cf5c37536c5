//! What goes where: a directory tree becomes an ordered list of files with their sessions, and a list of what is left
//! out and why. Reads names, sizes and first bytes; changes nothing and asks no gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use crate::cli::print;
use crate::domain::media::{SNIFF_BYTES, TypeRules, decide, sniff};
use crate::domain::{NameError, SessionId};

/// What decides about a file beside the file.
pub(super) struct Rules {
    /// All go into this session, whatever their directory.
    pub session: Option<SessionId>,
    /// Only paths that end in one of these, if there are any; lower case.
    pub include: Vec<String>,
    /// No paths that end in one of these; lower case.
    pub exclude: Vec<String>,
    /// Types that the gateway takes.
    pub types: TypeRules,
    /// Largest recording that the gateway takes, in bytes.
    pub max_bytes: u64,
}

/// A file that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// Below the directory that is migrated.
    pub relative: PathBuf,
    /// Where it goes.
    pub session: String,
    /// The name it is sent with: its path below the session's directory.
    pub original: String,
    /// Bytes.
    pub size: u64,
    /// When it was last written; the order of loading.
    pub modified: SystemTime,
    /// As the gateway will see it.
    pub content_type: String,
}

/// A file or directory that is not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Below the directory that is migrated.
    pub relative: PathBuf,
    /// Bytes, of a regular file that was looked at.
    pub size: Option<u64>,
    /// Why, as half a sentence.
    pub reason: String,
    /// Whether a person has to decide what becomes of it; false for what nobody expects to be loaded.
    pub to_decide: bool,
}

/// The whole tree.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Oldest first; files of one moment by their path.
    pub files: Vec<Planned>,
    /// By path.
    pub left_out: Vec<LeftOut>,
}

impl Plan {
    /// Reads the tree below `root`.
    ///
    /// # Errors
    /// If `root` itself cannot be read; what fails below it is left out and told.
    pub fn of_tree(root: &Path, rules: &Rules) -> io::Result<Self> {
        let mut plan = Self::default();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let entries =
                fs::read_dir(root.join(&directory)).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            match entries {
                Ok(entries) => {
                    for entry in entries {
                        plan.look(root, directory.join(entry.file_name()), rules, &mut directories);
                    }
                }
                Err(error) if directory.as_os_str().is_empty() => return Err(error),
                Err(error) => plan.leave(directory, None, unreadable(&error), true),
            }
        }
        plan.leave_out_collisions();
        plan.files.sort_by(|a, b| (a.modified, &a.relative).cmp(&(b.modified, &b.relative)));
        plan.left_out.sort_by(|a, b| a.relative.cmp(&b.relative));
        Ok(plan)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The sessions that files go to.
    pub fn sessions(&self) -> BTreeSet<&str> {
        self.files.iter().map(|file| file.session.as_str()).collect()
    }

    fn leave(&mut self, relative: PathBuf, size: Option<u64>, reason: impl Into<String>, to_decide: bool) {
        self.left_out.push(LeftOut { relative, size, reason: reason.into(), to_decide });
    }

    fn look(&mut self, root: &Path, relative: PathBuf, rules: &Rules, directories: &mut Vec<PathBuf>) {
        if is_hidden(&relative) {
            return self.leave(relative, None, "is hidden", false);
        }
        let facts = match fs::symlink_metadata(root.join(&relative)) {
            Ok(facts) => facts,
            Err(error) => return self.leave(relative, None, unreadable(&error), true),
        };
        if facts.is_dir() {
            return directories.push(relative);
        }
        let size = facts.is_file().then_some(facts.len());
        if let Some(reason) = not_chosen(&relative, rules) {
            return self.leave(relative, size, reason, false);
        }
        if is_own_report(&relative) {
            return self.leave(relative, size, "is the report of an earlier run", false);
        }
        if facts.is_symlink() {
            return self.leave(relative, None, "is a symbolic link, which is not followed", true);
        }
        if !facts.is_file() {
            return self.leave(relative, None, "is no regular file", true);
        }
        match examine(root, &relative, &facts, rules) {
            Ok(planned) => self.files.push(planned),
            Err(reason) => self.leave(relative, size, reason, true),
        }
    }

    /// Two directories whose names become one session would be mixed for good, so neither is loaded, unless one of
    /// them is named exactly like the session: that one is.
    fn leave_out_collisions(&mut self) {
        let mut sources: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
        for file in self.files.iter().filter(|file| file.relative.components().count() > 1) {
            sources.entry(file.session.clone()).or_default().insert(first_directory(&file.relative));
        }
        // All in one session is what was asked for.
        let asked = |file: &Planned| file.original == file.relative.to_string_lossy();
        let (kept, mixed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files).into_iter().partition(|file| {
            let directory = first_directory(&file.relative);
            asked(file) || directory.as_os_str() == file.session.as_str() || sources[&file.session].len() == 1
        });
        self.files = kept;
        for file in mixed {
            let own = first_directory(&file.relative);
            let others: Vec<String> = sources[&file.session]
                .iter()
                .filter(|other| **other != own)
                .map(|other| format!("\"{}\"", other.display()))
                .collect();
            let reason = format!(
                "its directory would become session {}, as would {}: rename one, or load it with --session",
                file.session,
                others.join(" and ")
            );
            self.leave(file.relative, Some(file.size), reason, true);
        }
    }
}

/// Where a path goes: the first directory is the session, the rest the original name; or all into `session`.
///
/// # Errors
/// Why it goes nowhere.
pub(super) fn destination(
    relative: &Path,
    session: Option<&SessionId>,
) -> Result<(SessionId, String), String> {
    if let Some(session) = session {
        return Ok((session.clone(), relative.to_string_lossy().into_owned()));
    }
    let mut parts = relative.components();
    let rest = |parts: std::path::Components| parts.as_path().to_string_lossy().into_owned();
    match (parts.next(), rest(parts)) {
        (Some(Component::Normal(directory)), rest) if !rest.is_empty() => Ok((session_of(directory)?, rest)),
        _ => Err("is in no directory that could be its session: name one with --session".into()),
    }
}

/// The session a directory becomes: what a session id may not have is replaced by `-`.
fn session_of(directory: &OsStr) -> Result<SessionId, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = directory.to_string_lossy().chars().map(|c| if legal(c) { c } else { '-' }).collect();
    SessionId::parse(&text).map_err(|error| match error {
        NameError::ReservedSession => {
            "its directory's name \"upload\" cannot be a session: rename it, or load it with --session".into()
        }
        _ => format!("its directory's name makes no session ({error}): rename it, or load it with --session"),
    })
}

fn examine(root: &Path, relative: &Path, facts: &fs::Metadata, rules: &Rules) -> Result<Planned, String> {
    let size = facts.len();
    if size == 0 {
        return Err("is empty".into());
    }
    if size > rules.max_bytes {
        let (has, most) = (print::size(size), print::size(rules.max_bytes));
        return Err(format!("has {has}, and the gateway takes at most {most} (uploads.max_bytes)"));
    }
    let (session, original) = destination(relative, rules.session.as_ref())?;
    let mut head = Vec::with_capacity(SNIFF_BYTES);
    File::open(root.join(relative))
        .and_then(|file| file.take(SNIFF_BYTES as u64).read_to_end(&mut head))
        .map_err(|error| unreadable(&error))?;
    let content_type = decide(sniff(&head), None, Some(&original)).content_type;
    if !rules.types.allows(&content_type) {
        return Err(format!("is {content_type}, which the gateway does not take (uploads.allowed_types)"));
    }
    let modified = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let (relative, session) = (relative.to_owned(), session.to_string());
    Ok(Planned { relative, session, original, size, modified, content_type })
}

fn not_chosen(relative: &Path, rules: &Rules) -> Option<&'static str> {
    let path = relative.to_string_lossy().to_lowercase();
    let ends = |suffixes: &[String]| suffixes.iter().any(|suffix| path.ends_with(suffix));
    if ends(&rules.exclude) {
        Some("is excluded by --exclude")
    } else if !rules.include.is_empty() && !ends(&rules.include) {
        Some("is not among --include")
    } else {
        None
    }
}

fn first_directory(relative: &Path) -> PathBuf {
    relative.components().next().map(|first| PathBuf::from(first.as_os_str())).unwrap_or_default()
}

fn is_hidden(relative: &Path) -> bool {
    relative.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_own_report(relative: &Path) -> bool {
    let name = relative.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("migrate-report-") && name.ends_with(".jsonl")
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rules() -> Rules {
        Rules {
            session: None,
            include: Vec::new(),
            exclude: Vec::new(),
            types: TypeRules::parse(&["audio/*".into(), "video/*".into()]).unwrap(),
            max_bytes: 1000,
        }
    }

    fn placed(relative: &str, session: Option<&str>) -> Result<(String, String), String> {
        let session = session.map(|session| SessionId::parse(session).unwrap());
        destination(Path::new(relative), session.as_ref()).map(|(id, name)| (id.to_string(), name))
    }

    /// A tree of `(path, content)`, each written a second after the one before.
    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (i, (path, content)) in files.iter().enumerate() {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + i as u64);
            File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        }
        dir
    }

    fn left_out(plan: &Plan) -> Vec<(String, bool)> {
        plan.left_out.iter().map(|out| (out.relative.display().to_string(), out.to_decide)).collect()
    }

    #[test]
    fn the_first_directory_is_the_session_and_the_rest_the_name() {
        for (path, session, name) in [
            ("talk/a.webm", "talk", "a.webm"),
            ("talk/day 1/cam/a.webm", "talk", "day 1/cam/a.webm"),
            ("Talk with Zoë (2)/a.webm", "Talk-with-Zo---2-", "a.webm"),
            ("a.b_c-D/x", "a.b_c-D", "x"),
        ] {
            assert_eq!(placed(path, None), Ok((session.into(), name.into())));
        }
        assert_eq!(placed("one two/a.webm", Some("s")), Ok(("s".into(), "one two/a.webm".into())));
        assert_eq!(placed("a.webm", Some("s")), Ok(("s".into(), "a.webm".into())));
        for nowhere in ["a.webm", "upload/a.webm", &format!("{}/a.webm", "x".repeat(129))] {
            assert!(placed(nowhere, None).unwrap_err().contains("--session"), "{nowhere}");
        }
    }

    #[test]
    fn the_oldest_file_is_first_whatever_its_directory() {
        let media = b"fLaC....";
        let tree = tree(&[("z/2.flac", media), ("a/1.flac", media), ("z/deep/er/0.flac", media)]);
        let plan = Plan::of_tree(tree.path(), &rules()).unwrap();
        let order: Vec<_> = plan.files.iter().map(|file| file.relative.to_str().unwrap()).collect();
        assert_eq!(order, ["z/2.flac", "a/1.flac", "z/deep/er/0.flac"]);
        assert_eq!((plan.bytes(), plan.sessions().len(), plan.left_out.len()), (24, 2, 0));
        assert_eq!(plan.files[0].content_type, "audio/flac");
    }

    #[test]
    fn what_is_left_out_is_told_and_some_of_it_is_for_a_person_to_decide() {
        let media = b"fLaC....";
        let tree = tree(&[
            ("s/good.flac", media),
            ("top.flac", media),
            ("s/empty.flac", b""),
            ("s/notes.txt", b"some words"),
            ("s/page.webm", b"<!DOCTYPE html><html>"),
            ("s/.hidden", media),
            (".hidden/a.flac", media),
            ("s/large.flac", &[b"fLaC".as_slice(), &[7; 1000]].concat()),
            ("s/skip.TMP", media),
            ("migrate-report-20260101T000000Z.jsonl", b"{}"),
        ]);
        std::os::unix::fs::symlink("good.flac", tree.path().join("s/link.flac")).unwrap();
        std::os::unix::net::UnixListener::bind(tree.path().join("s/socket")).unwrap();
        let excluding = Rules { exclude: vec![".tmp".into()], ..rules() };
        let plan = Plan::of_tree(tree.path(), &excluding).unwrap();
        assert_eq!(plan.files.len(), 1);
        let expected = [
            (".hidden", false),
            ("migrate-report-20260101T000000Z.jsonl", false),
            ("s/.hidden", false),
            ("s/empty.flac", true),
            ("s/large.flac", true),
            ("s/link.flac", true),
            ("s/notes.txt", true),
            ("s/page.webm", true),
            ("s/skip.TMP", false),
            ("s/socket", true),
            ("top.flac", true),
        ];
        assert_eq!(left_out(&plan), expected.map(|(path, decide)| (path.to_owned(), decide)));

        let including = Rules { include: vec!["good.flac".into()], ..rules() };
        let plan = Plan::of_tree(tree.path(), &including).unwrap();
        assert!(plan.files.len() == 1 && plan.left_out.iter().all(|out| !out.to_decide));
        assert!(Plan::of_tree(&tree.path().join("absent"), &rules()).is_err());
    }

    #[test]
    fn directories_that_would_become_one_session_are_not_mixed() {
        let media = b"fLaC....";
        let tree = tree(&[
            ("a b/1.flac", media),
            ("a?b/2.flac", media),
            ("c-d/3.flac", media),
            ("c d/4.flac", media),
            ("e/5.flac", media),
        ]);
        let plan = Plan::of_tree(tree.path(), &rules()).unwrap();
        let kept: Vec<_> = plan.files.iter().map(|file| file.relative.to_str().unwrap()).collect();
        assert_eq!(kept, ["c-d/3.flac", "e/5.flac"]);
        assert_eq!(left_out(&plan), ["a b/1.flac", "a?b/2.flac", "c d/4.flac"].map(|p| (p.to_owned(), true)));
        assert!(plan.left_out[0].reason.contains("session a-b, as would \"a?b\""), "{:?}", plan.left_out);
        let session = Some(SessionId::parse("all").unwrap());
        let plan = Plan::of_tree(tree.path(), &Rules { session, ..rules() }).unwrap();
        assert_eq!((plan.files.len(), plan.left_out.len()), (5, 0));
    }
}
