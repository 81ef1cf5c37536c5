//! Reads typed settings out of the winning entries and collects every mistake on the way.
//!
//! Apart so that the sections stay a list of keys and kinds. A setting that cannot be read becomes its type's default
//! for the moment: a reader that has mistakes never gives out a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::ConfigError;
use super::layers::Entry;
use super::value::{self, Raw, SHORTEST, Wrong};

/// A winning value for display: the key hidden, and any address that carries a password.
pub(super) fn shown(key: &str, raw: &Raw) -> String {
    let text = raw.to_string();
    let secret = matches!(key, "supabase.key" | "catalog.url") && !text.is_empty() && text != "sqlite"
        || text.contains("://") && text.contains('@');
    if secret { "***".into() } else { text }
}

pub(super) struct Reader<'a> {
    entries: &'a BTreeMap<String, Entry>,
    pub errors: Vec<ConfigError>,
    /// Keys that were asked for: compared with the keys that exist by a test.
    pub asked: BTreeSet<&'static str>,
}

impl<'a> Reader<'a> {
    pub fn new(entries: &'a BTreeMap<String, Entry>) -> Self {
        Self { entries, errors: Vec::new(), asked: BTreeSet::new() }
    }

    fn take<T: Default>(&mut self, key: &'static str, read: impl FnOnce(&Raw) -> Result<T, Wrong>) -> T {
        self.asked.insert(key);
        let Some(entry) = self.entries.get(key) else {
            self.errors.push(ConfigError::new(key, "has no built-in default"));
            return T::default();
        };
        read(&entry.raw).unwrap_or_else(|wrong| {
            let value = shown(key, &entry.raw);
            self.errors.push(ConfigError::new(&entry.source, format!("{key} = {value}: {wrong}")));
            T::default()
        })
    }

    /// Text that `parse` makes something of.
    pub fn text<T: Default>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(String) -> Result<T, Wrong>,
    ) -> T {
        self.take(key, |raw| parse(value::text(raw)?))
    }

    /// Text where the empty one means "not set".
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.text(key, |text| if text.is_empty() { Ok(None) } else { parse(&text).map(Some) })
    }

    pub fn whole<T: Default + TryFrom<u64>>(&mut self, key: &'static str, range: RangeInclusive<u64>) -> T {
        self.take(key, |raw| {
            T::try_from(value::whole(raw, range)?).map_err(|_| "is too large for this machine".into())
        })
    }

    pub fn switch(&mut self, key: &'static str) -> bool {
        self.take(key, value::switch)
    }

    /// A duration that may be zero.
    pub fn duration(&mut self, key: &'static str) -> Duration {
        self.duration_within(key, Duration::ZERO..=Duration::MAX)
    }

    /// A duration of at least a millisecond.
    pub fn some_duration(&mut self, key: &'static str) -> Duration {
        self.duration_within(key, SHORTEST..=Duration::MAX)
    }

    pub fn duration_within(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        self.take(key, |raw| value::duration(raw, &range))
    }

    /// Bytes.
    pub fn size(&mut self, key: &'static str, least: u64) -> u64 {
        self.take(key, |raw| value::size(raw, least))
    }

    pub fn list(
        &mut self,
        key: &'static str,
        check: impl FnOnce(Vec<String>) -> Result<Vec<String>, Wrong>,
    ) -> Vec<String> {
        self.take(key, |raw| check(value::list(raw)?))
    }

    pub fn choice<T: Copy + Default>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        self.take(key, |raw| value::choice(raw, choices))
    }
}
