//! The places settings come from, each turned into the same thing: key, value as written, source.
//!
//! Apart from `reader` because nothing here knows what a value means, only what keys exist. It never reads the process
//! or the disk itself: texts and variables are handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Source};
use super::nearest::nearest;
use super::value::Raw;

/// One setting as one source gave it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub raw: Raw,
    pub source: Source,
}

/// Names of variables that people already have, best first, and the key each one sets.
const FAMILIAR: [(&str, &str); 7] = [
    ("SUPABASE_URL", "supabase.url"),
    ("NEXT_PUBLIC_SUPABASE_URL", "supabase.url"),
    ("SUPABASE_SERVICE_ROLE_KEY", "supabase.key"),
    ("SUPABASE_SERVICE_KEY", "supabase.key"),
    ("SUPABASE_ANON_KEY", "supabase.key"),
    ("NEXT_PUBLIC_SUPABASE_ANON_KEY", "supabase.key"),
    ("DATABASE_URL", "catalog.url"),
];

/// Collects entries and mistakes while the layers are read, lowest first.
#[derive(Default)]
pub(super) struct Layers {
    /// Keys that exist; filled from the built-in defaults, which name every one.
    known: BTreeSet<String>,
    /// Later entries beat earlier ones of the same key.
    pub entries: Vec<Entry>,
    pub errors: Vec<ConfigError>,
}

impl Layers {
    /// The built-in defaults: the lowest layer, and the list of keys that exist.
    pub fn defaults(&mut self, text: &str) {
        for mut entry in self.parse(Path::new("built-in defaults"), text) {
            entry.source = Source::Default;
            self.known.insert(entry.key.clone());
            self.entries.push(entry);
        }
    }

    /// A TOML file.
    pub fn file(&mut self, path: &Path, text: &str) {
        for entry in self.parse(path, text) {
            self.add(entry);
        }
    }

    fn parse(&mut self, path: &Path, text: &str) -> Vec<Entry> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = |offset: usize| Source::File { path: path.to_owned(), line: line_number(text, offset) };
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What could be rescued of a broken file may be nonsense: complaints about it would only confuse.
            for error in errors {
                let place = source(error.span().map_or(0, |span| span.start));
                self.errors.push(ConfigError::new(place, error.message()));
            }
            return Vec::new();
        }
        let mut entries = Vec::new();
        flatten("", table.get_ref(), &mut |key, offset, raw| {
            entries.push(Entry { key, raw, source: source(offset) });
        });
        entries
    }

    /// The text of a `.env` file.
    pub fn dot_env(&mut self, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut variables = BTreeMap::new();
        for item in dotenvy::from_read_iter(text.as_bytes()) {
            match item {
                Ok((name, value)) => {
                    variables.insert(name, value);
                }
                // The line may hold a secret, so only its number is told.
                Err(dotenvy::Error::LineParse(line, _)) => {
                    let number = line_number(text, text.find(line.trim_end()).unwrap_or(0));
                    let message =
                        "cannot be read; write NAME=value, the value in quotes if it has spaces or #";
                    self.errors.push(ConfigError::new(format_args!(".env:{number}"), message));
                }
                Err(_) => self.errors.push(ConfigError::new(".env", "cannot be read")),
            }
        }
        self.variables(&variables, Source::DotEnv);
    }

    /// The environment, or what a `.env` file adds to it. Empty values count as not set.
    pub fn variables(&mut self, variables: &BTreeMap<String, String>, source: fn(String) -> Source) {
        let value = |name: &str| variables.get(name).filter(|value| !value.trim().is_empty());
        // Worst name first: within one layer, later entries beat earlier ones too.
        for (name, key) in FAMILIAR.iter().rev() {
            if let Some(value) = value(name) {
                let raw = Raw::Untyped(value.clone());
                self.entries.push(Entry { key: (*key).into(), raw, source: source((*name).into()) });
            }
        }
        for name in variables.keys().filter(|name| name.starts_with("GATEWAY_")) {
            let Some(value) = value(name) else { continue };
            let known = self.known.iter().find(|key| variable_name(key) == *name).cloned();
            match known {
                Some(key) => {
                    let raw = Raw::Untyped(value.clone());
                    self.entries.push(Entry { key, raw, source: source(name.clone()) });
                }
                None if is_service_link(name, value) => {}
                None => {
                    let key = name["GATEWAY_".len()..].to_lowercase().replace("__", ".");
                    let meant = self.meant(&key).map(|key| variable_name(&key));
                    self.unknown(&source(name.clone()), "is not a setting", &key, meant);
                }
            }
        }
    }

    /// A flag: its name as typed, the key it sets and the value.
    pub fn flag(&mut self, name: &str, key: &str, value: &str) {
        let raw = Raw::Untyped(value.to_owned());
        self.add(Entry { key: key.to_owned(), raw, source: Source::Flag(name.to_owned()) });
    }

    fn add(&mut self, entry: Entry) {
        if self.known.contains(&entry.key) {
            return self.entries.push(entry);
        }
        let section = format!("{}.", entry.key);
        if self.known.iter().any(|key| key.starts_with(&section)) {
            let message = format!("{} is a section: write its settings under [{0}]", entry.key);
            return self.errors.push(ConfigError::new(&entry.source, message));
        }
        let meant = self.meant(&entry.key);
        self.unknown(&entry.source, &format!("{} is not a setting", entry.key), &entry.key, meant);
    }

    /// The known key that an unknown one was probably meant to be: a typing mistake, or the right name in the wrong
    /// section.
    fn meant(&self, key: &str) -> Option<String> {
        let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
        let close = nearest(key, self.known.iter().map(String::as_str));
        let moved = || {
            let mut same = self.known.iter().filter(|known| last(known) == last(key));
            same.next().filter(|_| same.next().is_none()).map(String::as_str)
        };
        close.or_else(moved).map(str::to_owned)
    }

    fn unknown(&mut self, source: &Source, what: &str, key: &str, meant: Option<String>) {
        let section = key.split('.').next().unwrap_or_default();
        let in_section = |known: &&str| known.split('.').next() == Some(section);
        let keys = || self.known.iter().map(String::as_str);
        let hint = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None if keys().any(|key| in_section(&key)) => {
                format!("there are {}", keys().filter(in_section).collect::<Vec<_>>().join(", "))
            }
            None => {
                let sections: BTreeSet<_> = keys().filter_map(|key| key.split('.').next()).collect();
                format!("the sections are {}", sections.into_iter().collect::<Vec<_>>().join(", "))
            }
        };
        self.errors.push(ConfigError::new(source, format!("{what}; {hint}")));
    }
}

/// The environment variable that sets a key: `server.port` is `GATEWAY_SERVER__PORT`.
pub(super) fn variable_name(key: &str) -> String {
    format!("GATEWAY_{}", key.to_uppercase().replace('.', "__"))
}

/// Kubernetes gives every container variables about each service beside it. A service called `gateway` makes
/// `GATEWAY_SERVICE_HOST`, `GATEWAY_SERVICE_PORT`, `GATEWAY_PORT=tcp://…` and `GATEWAY_PORT_8000_TCP…`, which nobody meant
/// for us ("Discovering services: environment variables" in its manual).
fn is_service_link(name: &str, value: &str) -> bool {
    name == "GATEWAY_SERVICE_HOST"
        || name.starts_with("GATEWAY_SERVICE_PORT")
        || (name == "GATEWAY_PORT" && value.contains("://"))
        || (name.starts_with("GATEWAY_PORT_") && (name.contains("_TCP") || name.contains("_UDP")))
}

fn flatten(prefix: &str, table: &DeTable<'_>, found: &mut impl FnMut(String, usize, Raw)) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        match value.get_ref() {
            DeValue::Table(inner) => flatten(&key, inner, found),
            other => found(key, name.span().start, raw(other)),
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Boolean(yes) => Raw::Boolean(*yes),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Raw::Other(number.to_string()), Raw::Integer),
        DeValue::Float(number) => Raw::Other(number.to_string()),
        DeValue::Datetime(time) => Raw::Other(time.to_string()),
        DeValue::Table(_) => Raw::Other("{…}".into()),
    }
}

fn line_number(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
