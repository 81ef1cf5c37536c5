//! Settings: read once at start, typed, each with where it came from.
//!
//! Layers, each beating the one before: `config/default.toml` as built into the program, the same file in the working
//! directory, a file given by `--config`, `.env`, the environment, flags. Everything that is wrong is told at once.
//! Nothing in here reads the process by itself except [`LoadInput::of_process`]; nobody outside asks for a setting by
//! name.

mod error;
mod layers;
mod nearest;
mod reader;
mod secret;
mod sections;
mod supabase;
mod value;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, ConfigErrors, Source};
pub use secret::Secret;
pub use sections::{
    AuthConfig, AuthMode, CatalogConfig, DownloadConfig, DownloadVia, LogConfig, LogFormat, ServerConfig,
    StorageConfig, SyncConfig, SyncVerify, UploadsConfig,
};
pub use supabase::{BREAKER_PAUSE_MAX, SupabaseConfig};

use layers::{Entry, Layers};
use reader::Reader;

/// The one source of the defaults.
const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Every setting. [`Config::default`] is what a gateway without any configuration runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The listener.
    pub server: ServerConfig,
    /// The local disk.
    pub storage: StorageConfig,
    /// What the gateway remembers.
    pub catalog: CatalogConfig,
    /// The cloud.
    pub supabase: SupabaseConfig,
    /// What is taken from clients.
    pub uploads: UploadsConfig,
    /// From the local disk to the cloud.
    pub sync: SyncConfig,
    /// How bytes are given out.
    pub download: DownloadConfig,
    /// Who may use the gateway.
    pub auth: AuthConfig,
    /// Logging.
    pub log: LogConfig,
}

/// What settings are read from. Tests fill it by hand.
pub struct LoadInput<'a> {
    /// Reads a file; paths are relative to the working directory.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The file given by `--config`.
    pub config_file: Option<PathBuf>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Flags in the order given.
    pub flags: Vec<Flag>,
}

/// A setting given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag as typed, like `--port`: for messages.
    pub name: String,
    /// The setting, like `server.port`.
    pub key: String,
    /// The value as typed.
    pub value: String,
}

impl LoadInput<'static> {
    /// The files and the environment of this process. The only place that reads them.
    pub fn of_process(config_file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            read_file: &|path| std::fs::read_to_string(path),
            config_file,
            environment: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            flags,
        }
    }
}

/// A configuration, and what to tell about it.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Every setting with its source, sorted by key.
    pub values: Vec<ResolvedValue>,
    /// Things that work but are probably not what was meant; one sentence or two each, to be logged once.
    pub warnings: Vec<String>,
}

/// One setting that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedValue {
    /// Like `server.port`.
    pub key: String,
    /// The value as it was written; `***` for a secret.
    pub shown_value: String,
    /// Where it came from.
    pub source: Source,
}

impl Default for Config {
    fn default() -> Self {
        let nothing = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let input = LoadInput {
            read_file: &nothing,
            config_file: None,
            environment: BTreeMap::new(),
            flags: Vec::new(),
        };
        Self::load(&input).expect("the built-in defaults are valid, which a test checks").config
    }
}

impl Config {
    /// Reads all layers.
    ///
    /// # Errors
    /// Everything that is wrong, at once: broken files, unknown settings, values of the wrong kind or out of range, an
    /// address without a key or the other way round. A wrong value that a higher layer replaces does not matter.
    pub fn load(input: &LoadInput<'_>) -> Result<Loaded, ConfigErrors> {
        let layers = read_layers(input);
        let mut winners: BTreeMap<String, Entry> = BTreeMap::new();
        for entry in layers.entries {
            winners.insert(entry.key.clone(), entry);
        }

        let mut reader = Reader::new(&winners);
        let config = Self::read(&mut reader);
        let mut errors = layers.errors;
        errors.append(&mut reader.errors);
        errors.extend(lonely_credential(&winners));
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }

        let warnings = warnings(&config, &winners);
        let values = winners
            .into_values()
            .map(|entry| ResolvedValue {
                shown_value: reader::shown(&entry.key, &entry.raw),
                key: entry.key,
                source: entry.source,
            })
            .collect();
        Ok(Loaded { config, values, warnings })
    }

    fn read(r: &mut Reader<'_>) -> Self {
        Self {
            server: ServerConfig::read(r),
            storage: StorageConfig::read(r),
            catalog: CatalogConfig::read(r),
            supabase: SupabaseConfig::read(r),
            uploads: UploadsConfig::read(r),
            sync: SyncConfig::read(r),
            download: DownloadConfig::read(r),
            auth: AuthConfig::read(r),
            log: LogConfig::read(r),
        }
    }
}

fn read_layers(input: &LoadInput<'_>) -> Layers {
    let mut layers = Layers::default();
    layers.defaults(DEFAULTS);

    let mut read =
        |path: &Path, must_exist: bool, take: fn(&mut Layers, &Path, &str)| match (input.read_file)(path) {
            Ok(text) => take(&mut layers, path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
            Err(error) => {
                layers.errors.push(ConfigError::new(path.display(), format!("cannot be read: {error}")));
            }
        };
    read(Path::new("config/default.toml"), false, Layers::file);
    if let Some(path) = &input.config_file {
        read(path, true, Layers::file);
    }
    read(Path::new(".env"), false, |layers, _, text| layers.dot_env(text));

    layers.variables(&input.environment, Source::Environment);
    for flag in &input.flags {
        layers.flag(&flag.name, &flag.key, &flag.value);
    }
    layers
}

/// An address without a key, or a key without an address, as they were written (wrong ones count as there).
fn lonely_credential(winners: &BTreeMap<String, Entry>) -> Option<ConfigError> {
    let given = |key: &str| winners.get(key).filter(|entry| !entry.raw.to_string().trim().is_empty());
    match (given("supabase.url"), given("supabase.key")) {
        (Some(url), None) => Some(ConfigError::new(
            &url.source,
            "supabase.url is set but supabase.key is missing: set SUPABASE_SERVICE_ROLE_KEY, \
             or neither to keep recordings on the local disk",
        )),
        (None, Some(key)) => Some(ConfigError::new(
            &key.source,
            "supabase.key is set but supabase.url is missing: set SUPABASE_URL, \
             or neither to keep recordings on the local disk",
        )),
        _ => None,
    }
}

fn warnings(config: &Config, winners: &BTreeMap<String, Entry>) -> Vec<String> {
    let mut warnings = Vec::new();
    match (&config.supabase.key, winners.get("supabase.key")) {
        (Some(key), Some(entry)) => warnings.extend(supabase::public_key_warning(key, &entry.source)),
        _ => warnings.push(
            "No Supabase credentials: recordings are kept on the local disk only. Set SUPABASE_URL and \
             SUPABASE_SERVICE_ROLE_KEY to send them to the cloud."
                .into(),
        ),
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_file_is_read_and_every_key_read_is_in_the_file() {
        let mut layers = Layers::default();
        layers.defaults(DEFAULTS);
        let written: BTreeMap<_, _> =
            layers.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let mut reader = Reader::new(&written);
        Config::read(&mut reader);
        assert_eq!(reader.errors, []);
        let asked: Vec<_> = reader.asked.iter().map(ToString::to_string).collect();
        assert_eq!(asked, written.keys().cloned().collect::<Vec<_>>());
    }

    #[test]
    fn every_key_has_a_comment_with_its_consequence_default_and_unit() {
        let mut comment = String::new();
        let mut keys = 0;
        for line in DEFAULTS.lines() {
            if let Some(text) = line.strip_prefix('#') {
                comment += text;
            } else if let Some((key, value)) = line.split_once(" = ") {
                let (consequence, default) = comment
                    .split_once(" Default: ")
                    .unwrap_or_else(|| panic!("{key}: no default in {comment:?}"));
                assert!(consequence.len() > 20, "{key}: no consequence in {consequence:?}");
                assert!(default.starts_with(value), "{key}: is {value}, the comment says {default:?}");
                let text = value.trim_matches('"');
                if text != value && text.starts_with(|c: char| c.is_ascii_digit()) && key != "host" {
                    let unit = if text.ends_with('B') { "(size" } else { "(duration" };
                    assert!(default.contains(unit), "{key}: no unit in {default:?}");
                }
                keys += 1;
                comment.clear();
            } else {
                comment.clear();
            }
        }
        assert!(keys > 30, "{keys}");
    }
}
