//! Keeps the house: which room may look into which, how files begin, how long they may get, and that the README
//! tells every problem code there is.
//!
//! Reads the source as text; what the compiler checks already is not checked here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each room may name of the others, as path prefixes. `ARCHITECTURE.md` has the picture; a new arrow needs a
/// reason there.
const ARROWS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("config", &[]),
    ("runtime", &["config::LogConfig", "config::LogFormat"]),
    ("spool", &["domain"]),
    ("storage", &["domain", "spool"]),
    ("catalog", &["domain", "storage::ListScope"]),
    ("service", &["domain", "runtime", "spool", "storage", "catalog"]),
    ("http", &["domain", "runtime", "service", "storage::breaker::State", "storage::chain"]),
    (
        "jobs",
        &[
            "domain",
            "runtime",
            "service",
            "catalog::Job",
            "catalog::Work",
            "storage::breaker::State",
            "storage::chain",
        ],
    ),
    ("cli", &["app", "config", "domain", "http"]),
    (
        "app",
        &[
            "domain",
            "config",
            "runtime",
            "spool",
            "storage",
            "catalog",
            "service",
            "http",
            "jobs",
            "cli::check",
        ],
    ),
];

/// Adapters: outside their own room only the composition root names them.
const ADAPTERS: [&str; 4] = ["storage::supabase", "storage::local", "storage::memory", "catalog::sqlite"];

/// Crates that belong to one kind of work, and where that is done.
const OUTSIDE: [(&str, &[&str]); 10] = [
    ("axum", &["http/", "app.rs"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("utoipa", &["http/"]),
    ("sqlx", &["catalog/"]),
    ("reqwest", &["storage/supabase/", "storage/peer.rs", "cli/"]),
    ("clap", &["cli/"]),
    ("toml", &["config/"]),
    ("dotenvy", &["config/"]),
    ("anyhow", &["cli/", "app.rs", "main.rs"]),
];

const LONGEST_FILE: usize = 700;

struct Source {
    /// Below `src/`, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The room, or the file's own name above the rooms.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The code without line comments: what is said about a room is no look into it.
    fn code(&self) -> String {
        self.text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found.sort();
    assert!(found.len() > 50, "the sources were not found");
    let source = |path: PathBuf| Source {
        text: std::fs::read_to_string(&path).unwrap(),
        path: path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(),
    };
    found.into_iter().map(source).collect()
}

/// Every path below `crate::` in the code, with its braces unfolded.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        // `$crate::` of a macro and names that end in `crate` are something else.
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            unfold(&code[at + found.len()..], "", &mut paths);
        }
    }
    paths
}

/// Reads one use tree; returns what follows it.
fn unfold<'a>(mut text: &'a str, before: &str, paths: &mut Vec<String>) -> &'a str {
    let mut path = before.to_owned();
    loop {
        if let Some(mut inside) = text.strip_prefix('{') {
            loop {
                inside = inside.trim_start();
                if let Some(after) = inside.strip_prefix('}') {
                    return after;
                }
                inside = unfold(inside, &path, paths).trim_start();
                inside = inside.split_once([',', '}']).map_or("", |(alias, _)| {
                    // Stays before a closing brace, goes past a comma.
                    let rest = &inside[alias.len()..];
                    rest.strip_prefix(',').unwrap_or(rest)
                });
            }
        }
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        path.push_str(&text[..end]);
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(after) if !after.starts_with(['<', '*']) => {
                path.push_str("::");
                text = after;
            }
            _ => {
                paths.push(path);
                return text;
            }
        }
    }
}

/// Whether `path` is `prefix` or lies below it.
fn below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn use_trees_are_unfolded() {
    let code = "use crate::{app, http}; use crate::storage::{Kind as K, tiered::{A, B}, chain}; crate::domain::page::cut(x)";
    let expected = [
        "app",
        "http",
        "storage::Kind",
        "storage::tiered::A",
        "storage::tiered::B",
        "storage::chain",
        "domain::page::cut",
    ];
    assert_eq!(crate_paths(code), expected);
    assert!(below("http::openapi", "http") && !below("httpd", "http"));
}

#[test]
fn rooms_look_only_where_they_may() {
    let mut wrong = Vec::new();
    for source in sources() {
        let room = source.room();
        if matches!(room, "lib" | "main") {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("src/{room} is in no row of the table of arrows"));
        for path in crate_paths(&source.code()) {
            let own = below(&path, room);
            if !own && !allowed.iter().any(|prefix| below(&path, prefix)) {
                wrong.push(format!("src/{} looks into {path}", source.path));
            }
            let adapter = ADAPTERS.iter().find(|adapter| below(&path, adapter));
            if adapter.is_some_and(|adapter| room != "app" && !below(adapter, room)) {
                wrong.push(format!("src/{} names the adapter {path}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for source in sources() {
        let code = source.code();
        for (name, places) in OUTSIDE {
            let named = code
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if named && !places.iter().any(|place| source.path.starts_with(place)) {
                wrong.push(format!("src/{} names {name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Behind a pooler in transaction mode a statement that is prepared by name fails now and then.
#[test]
fn no_statement_is_prepared_by_name() {
    for source in sources().into_iter().filter(|source| source.room() == "catalog") {
        let named = source.code().matches("sqlx::query").count();
        // The one that takes the name away, and the import of its type.
        let allowed = if source.path == "catalog/sql/mod.rs" { 2 } else { 0 };
        assert_eq!(named, allowed, "src/{}: write sql(..) instead of sqlx::query(..)", source.path);
    }
}

/// A catalogue or a bucket of millions does not fit into memory: it is gone through in parts.
#[test]
fn nothing_asks_for_everything_at_once() {
    for source in sources() {
        for (at, _) in source.code().match_indices("ListScope::Everything") {
            let before: String = source.code()[..at].split_whitespace().collect();
            let in_parts = before.ends_with("primary_page(&")
                || source.room() == "storage"
                || source.room() == "catalog";
            assert!(in_parts, "src/{}: everything is asked for a page at a time", source.path);
        }
    }
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    for source in sources() {
        let path = &source.path;
        let first = source.text.lines().next().unwrap_or_default();
        let says = first.strip_prefix("//! ").is_some_and(|rest| rest.len() > 10);
        assert!(says, "src/{path} begins without a //! line that says what lives there");
        let lines = source.text.lines().count();
        assert!(lines <= LONGEST_FILE, "src/{path} has {lines} lines");
        for room in ["utils", "common", "helpers", "manager"] {
            assert!(!path.split(['/', '.']).any(|part| part == room), "src/{path} says nothing by its name");
        }
    }
}

/// Every code that the edge can answer: the literal behind a status, and every such literal in the file that maps
/// errors to answers.
fn problem_codes() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for source in sources().into_iter().filter(|source| source.room() == "http") {
        let code = source.text.split("#[cfg(test)]").next().unwrap();
        for (at, _) in code.match_indices('"') {
            let rest = &code[at + 1..];
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(rest.len());
            let behind_status = code[..at].trim_end().strip_suffix(',').is_some_and(|before| {
                let argument = before.rsplit(['(', ',', ' ', '\n']).next().unwrap_or_default();
                argument.starts_with("StatusCode::") || argument.starts_with("S::")
            });
            let is_code = rest[end..].starts_with('"') && rest[..end].contains('_');
            if is_code && (behind_status || source.path == "http/problem.rs") {
                codes.insert(rest[..end].to_owned());
            }
        }
    }
    codes
}

#[test]
fn the_readme_tells_every_problem_code() {
    let codes = problem_codes();
    for known in ["recording_missing", "storage_full", "via_invalid", "session_id_invalid", "internal_error"]
    {
        assert!(codes.contains(known), "{known} was not found in the source: {codes:?}");
    }
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n### Problem codes\n").expect("the README has the section");
    let section = section.split("\n#").next().unwrap();
    let told: BTreeSet<String> = section
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .map(str::to_owned)
        .collect();
    let untold: Vec<_> = codes.difference(&told).collect();
    let gone: Vec<_> = told.difference(&codes).collect();
    assert!(untold.is_empty() && gone.is_empty(), "not in the README: {untold:?}; only there: {gone:?}");
}

#[test]
fn the_architecture_names_every_room_and_only_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (room, _) in ARROWS {
        assert!(text.contains(&format!("`{room}")), "ARCHITECTURE.md says nothing about {room}");
    }
    // A test is named as `path::to::test`, its file below src/ or tests/it/ first.
    let mut named = 0;
    for word in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = word.split_once(".rs::") else { continue };
        named += 1;
        let path = root().join(format!("{file}.rs"));
        let source = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{word}: no such file"));
        // A story is told on every database.
        let is_there =
            [format!("fn {test}("), format!("story!({test},")].iter().any(|text| source.contains(text));
        assert!(is_there, "{word}: no such test");
    }
    assert!(named > 10, "the invariants name their tests");
}
