//! Loading the configuration: which layer wins, and what each mistake is told as.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use recording_gateway::config::{
    Config, ConfigErrors, DownloadVia, Flag, LoadInput, Loaded, Source, SyncVerify,
};

/// A working directory, an environment and flags, none of them real.
#[derive(Default)]
struct World {
    files: BTreeMap<PathBuf, String>,
    config_file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    flags: Vec<Flag>,
}

impl World {
    fn new() -> Self {
        Self::default()
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.into());
        self
    }

    fn config_file(mut self, path: &str) -> Self {
        self.config_file = Some(path.into());
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, name: &str, key: &str, value: &str) -> Self {
        self.flags.push(Flag { name: name.into(), key: key.into(), value: value.into() });
        self
    }

    fn load(self) -> Result<Loaded, ConfigErrors> {
        let read_file =
            |path: &Path| self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into());
        Config::load(&LoadInput {
            read_file: &read_file,
            config_file: self.config_file,
            environment: self.environment,
            flags: self.flags,
        })
    }

    /// The messages, one per mistake.
    fn mistakes(self) -> Vec<String> {
        let errors = self.load().expect_err("this configuration must be refused");
        errors.0.iter().map(ToString::to_string).collect()
    }
}

fn source_of(loaded: &Loaded, key: &str) -> (String, String) {
    let value = loaded.values.iter().find(|value| value.key == key).expect("a known key");
    (value.shown_value.clone(), value.source.to_string())
}

#[test]
fn nothing_at_all_is_a_working_local_gateway() {
    let loaded = World::new().load().unwrap();
    let config = &loaded.config;
    assert_eq!((config.server.host.as_str(), config.server.port), ("127.0.0.1", 8000));
    assert_eq!((config.server.node.as_str(), config.server.allowed_origins.len()), ("", 0));
    assert_eq!(config.server.header_timeout, Duration::from_secs(30));
    assert_eq!(config.server.shutdown_grace, Duration::from_secs(30));
    assert_eq!(config.server.max_connections, 10_000);
    assert_eq!(config.storage.local_dir, Path::new("recordings"));
    assert_eq!(config.storage.min_free, 256 << 20);
    let supabase = &config.supabase;
    assert_eq!((&supabase.url, &supabase.key), (&None, &None));
    assert_eq!(supabase.bucket, "interview-recordings");
    assert_eq!((supabase.create_bucket, supabase.public), (false, true));
    let seconds = [supabase.patience, supabase.connect_timeout, supabase.idle_timeout, supabase.list_timeout]
        .map(|duration| duration.as_secs());
    assert_eq!(seconds, [10, 5, 30, 5]);
    assert_eq!((supabase.breaker_failures, supabase.breaker_pause.as_secs()), (3, 10));
    assert_eq!(supabase.resumable_from, 64 << 20);
    assert_eq!(supabase.signed_url_ttl, Duration::from_secs(3600));
    assert_eq!(config.uploads.max_bytes, 20 << 30);
    assert_eq!(config.uploads.allowed_types, ["audio/*", "video/*"]);
    assert_eq!(config.uploads.idle_timeout, Duration::from_secs(60));
    assert_eq!(config.uploads.max_concurrent, 2000);
    assert_eq!(config.uploads.seal_after, Duration::from_secs(120));
    assert_eq!(config.uploads.idempotency_ttl, Duration::from_secs(24 * 3600));
    assert_eq!(config.sync.interval, Duration::from_secs(30));
    assert_eq!((config.sync.keep_local, config.sync.verify), (false, SyncVerify::Etag));
    assert_eq!((config.sync.max_concurrent, config.sync.max_rate), (2, 0));
    assert_eq!(config.sync.keep_jobs, Duration::from_secs(7 * 24 * 3600));
    assert_eq!((config.download.via, config.download.cache_bytes), (DownloadVia::Redirect, 0));
    assert_eq!(config.log.level, "info");

    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].contains("No Supabase credentials"));
    assert!(loaded.values.iter().all(|value| value.source == Source::Default));
    assert_eq!(*config, Config::default());
}

#[test]
fn each_layer_beats_the_one_before() {
    let key = "server.port";
    let port = |n: u16| format!("[server]\n\nport = {n}\n");
    let mut world = World::new().file("config/default.toml", &port(1));
    let mut expected = ("1".to_owned(), "config/default.toml:3".to_owned());
    type Step = (fn(World, &str) -> World, &'static str);
    let steps: [Step; 5] = [
        (|world, text| world.file("my.toml", text).config_file("my.toml"), "my.toml:3"),
        (|world, _| world.file(".env", "GATEWAY_SERVER__PORT=3\n"), ".env GATEWAY_SERVER__PORT"),
        (|world, _| world.env("GATEWAY_SERVER__PORT", "4"), "environment GATEWAY_SERVER__PORT"),
        (|world, _| world.flag("--port", "server.port", "5"), "flag --port"),
        (|world, _| world.flag("--set server.port", "server.port", "6"), "flag --set server.port"),
    ];
    for (n, (step, source)) in (2..).zip(steps) {
        let again = World {
            files: world.files.clone(),
            config_file: world.config_file.clone(),
            environment: world.environment.clone(),
            flags: world.flags.clone(),
        };
        assert_eq!(source_of(&again.load().unwrap(), key), expected);
        world = step(world, &port(n));
        expected = (n.to_string(), source.into());
    }
    let loaded = world.load().unwrap();
    assert_eq!(source_of(&loaded, key), expected);
    assert_eq!(loaded.config.server.port, 6);
    assert_eq!(source_of(&loaded, "server.host"), ("127.0.0.1".into(), "default".into()));
}

#[test]
fn familiar_names_work_and_the_best_one_wins() {
    const URL: &str = "https://abc.supabase.co";
    let key = |world: World| {
        let loaded = world.env("SUPABASE_URL", URL).load().unwrap();
        let key = loaded.config.supabase.key.as_ref().unwrap().expose().to_owned();
        (key, source_of(&loaded, "supabase.key").1, loaded.warnings)
    };
    let names = [
        "NEXT_PUBLIC_SUPABASE_ANON_KEY",
        "SUPABASE_ANON_KEY",
        "SUPABASE_SERVICE_KEY",
        "SUPABASE_SERVICE_ROLE_KEY",
    ];
    for count in 1..=names.len() {
        let world =
            names[..count].iter().fold(World::new(), |world, name| world.env(name, &name.to_lowercase()));
        let best = names[count - 1];
        let (value, source, warnings) = key(world);
        assert_eq!((value, source), (best.to_lowercase(), format!("environment {best}")));
        let told = warnings.iter().any(|warning| warning.contains("public (anon) key"));
        assert_eq!(told, best.ends_with("ANON_KEY"), "{best}: {warnings:?}");
    }
    let world = World::new().env("SUPABASE_SERVICE_ROLE_KEY", "familiar").env("GATEWAY_SUPABASE__KEY", "own");
    assert_eq!(key(world).0, "own");

    let url = |world: World| {
        let loaded = world.env("SUPABASE_SERVICE_ROLE_KEY", "k").load().unwrap();
        loaded.config.supabase.storage_base().unwrap().to_string()
    };
    let next = || World::new().env("NEXT_PUBLIC_SUPABASE_URL", "https://next.supabase.co");
    assert_eq!(url(next()), "https://next.supabase.co/storage/v1");
    assert_eq!(url(next().env("SUPABASE_URL", URL)), "https://abc.supabase.co/storage/v1");
    let own = next().env("SUPABASE_URL", URL).env("GATEWAY_SUPABASE__URL", "https://own.example");
    assert_eq!(url(own), "https://own.example/storage/v1");
    // The layer counts before the name does.
    let layered =
        World::new().file(".env", "GATEWAY_SUPABASE__URL=https://file.example").env("SUPABASE_URL", URL);
    assert_eq!(url(layered), "https://abc.supabase.co/storage/v1");
}

#[test]
fn empty_variables_count_as_not_set() {
    let loaded = World::new()
        .file(".env", "GATEWAY_SERVER__PORT=9000\nSUPABASE_URL=\n")
        .env("GATEWAY_SERVER__PORT", "")
        .env("SUPABASE_SERVICE_ROLE_KEY", " ")
        .env("GATEWAY_NO_SUCH", "")
        .load()
        .unwrap();
    assert_eq!(loaded.config.server.port, 9000);
    assert_eq!(loaded.config.supabase.key, None);
}

#[test]
fn half_credentials_are_refused() {
    let url = World::new().env("SUPABASE_URL", "https://abc.supabase.co").mistakes();
    assert_eq!(url.len(), 1, "{url:?}");
    assert!(
        url[0].starts_with("environment SUPABASE_URL: ") && url[0].contains("supabase.key is missing"),
        "{url:?}"
    );
    let key = World::new().file(".env", "SUPABASE_SERVICE_KEY=abc").mistakes();
    assert_eq!(key.len(), 1, "{key:?}");
    assert!(
        key[0].starts_with(".env SUPABASE_SERVICE_KEY: ") && key[0].contains("supabase.url is missing"),
        "{key:?}"
    );
}

#[test]
fn secrets_are_hidden_everywhere() {
    let secret = "top-secret-value";
    let world = || {
        World::new().env("SUPABASE_URL", "https://abc.supabase.co").env("SUPABASE_SERVICE_ROLE_KEY", secret)
    };
    let loaded = world().load().unwrap();
    assert!(!format!("{loaded:?}").contains(secret));
    assert_eq!(source_of(&loaded, "supabase.key").0, "***");

    let mistakes = World::new()
        .env("SUPABASE_URL", &format!("https://user:{secret}@abc.supabase.co"))
        .env("SUPABASE_SERVICE_ROLE_KEY", &format!("two words {secret}"))
        .env("GATEWAY_CATALOG__URL", &format!("mysql://user:{secret}@db/x"))
        .file(".env", &format!("KEY {secret}\n"))
        .mistakes();
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
    assert!(mistakes.iter().all(|mistake| !mistake.contains(secret)), "{mistakes:?}");
}

#[test]
fn a_database_url_names_the_shared_catalogue_and_is_never_shown() {
    let loaded = World::new()
        .file(".env", "DATABASE_URL=postgres://u:hidden@low/d")
        .env("DATABASE_URL", "postgresql://u:hidden@high/d")
        .load()
        .unwrap();
    let url = loaded.config.catalog.url.as_ref().unwrap();
    assert_eq!(url.expose(), "postgresql://u:hidden@high/d");
    assert!(loaded.values.iter().all(|value| !value.shown_value.contains("hidden")), "{:?}", loaded.values);
    assert!(!format!("{:?}", loaded.config).contains("hidden"));
    let embedded = World::new().env("GATEWAY_CATALOG__URL", "sqlite").load().unwrap();
    assert!(embedded.config.catalog.url.is_none());
    let mistakes = World::new().env("DATABASE_URL", "mysql://u:hidden@h/d").mistakes();
    assert!(
        mistakes[0].contains("postgres://user:password@host") && !mistakes[0].contains("hidden"),
        "{mistakes:?}"
    );
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let mistakes = World::new()
        .file(
            "config/default.toml",
            "[server]\nprot = 1\nport = \"8000\"\n[uploads]\nidle_timeout = 60\nmax_bytes = 0\n[other]\nx = 1\n\
             [storage]\neverything = 1\n",
        )
        .file("my.toml", "sync = 5\n[server]\nheader_timeout = \"0s\"\ninterval = \"3s\"\n")
        .config_file("my.toml")
        .file(".env", "GATEWAY_SYNC__INTERVALL=5s\nGATEWAY_SUPABASE__BREAKER_PAUSE=10min\n")
        .env("GATEWAY_SERVER_HOST", "::")
        .env("GATEWAY_AUTH__MODE", "keys")
        .env("GATEWAY_SYNC__VERIFY", "md5")
        .flag("--log-level", "log.level", "inof")
        .flag("--set sevrer.port", "sevrer.port", "1")
        .mistakes();
    let expected = [
        "config/default.toml:2: server.prot is not a setting; did you mean server.port?",
        "config/default.toml:8: other.x is not a setting; the sections are auth, catalog, download, log, server, \
         storage, supabase, sync, uploads",
        "config/default.toml:10: storage.everything is not a setting; there are storage.local_dir, storage.min_free",
        "my.toml:1: sync is a section: write its settings under [sync]",
        "my.toml:4: server.interval is not a setting; did you mean sync.interval?",
        ".env GATEWAY_SYNC__INTERVALL: is not a setting; did you mean GATEWAY_SYNC__INTERVAL?",
        "environment GATEWAY_SERVER_HOST: is not a setting; did you mean GATEWAY_SERVER__HOST?",
        "flag --set sevrer.port: sevrer.port is not a setting; did you mean server.port?",
        "config/default.toml:3: server.port = 8000: must be a whole number from 0 to 65535, without quotes",
        "my.toml:3: server.header_timeout = 0s: must be more than zero",
        ".env GATEWAY_SUPABASE__BREAKER_PAUSE: supabase.breaker_pause = 10min: must be at most 5m",
        "config/default.toml:6: uploads.max_bytes = 0: must be more than zero",
        "config/default.toml:5: uploads.idle_timeout = 60: needs a unit: write \"60s\", \"60min\" or \"60h\"",
        "environment GATEWAY_SYNC__VERIFY: sync.verify = md5: must be \"size\" or \"etag\" or \"read\"",
        "environment GATEWAY_AUTH__MODE: auth.mode = keys: must be \"none\": this version has no other mode",
        "flag --log-level: log.level = inof: must be off, error, warn, info, debug or trace, or a list like \
         \"info,recording_gateway=debug\"",
    ];
    for line in expected {
        assert!(mistakes.iter().any(|mistake| mistake == line), "missing: {line}\namong: {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
}

#[test]
fn broken_files_are_told_with_their_line() {
    let mistakes = World::new()
        .file("config/default.toml", "[server]\nport = \n")
        .file(".env", "FINE=1\nNOT FINE\n")
        .config_file("absent.toml")
        .mistakes();
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("config/default.toml:2: ")), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with(".env:2: cannot be read")), "{mistakes:?}");
    assert!(
        mistakes.iter().any(|mistake| mistake.starts_with("absent.toml: cannot be read")),
        "{mistakes:?}"
    );
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[test]
fn values_of_every_kind_come_from_the_environment() {
    let config = World::new()
        .env("GATEWAY_UPLOADS__ALLOWED_TYPES", "audio/webm, video/*")
        .env("GATEWAY_UPLOADS__MAX_BYTES", "5GiB")
        .env("GATEWAY_STORAGE__MIN_FREE", "1000")
        .env("GATEWAY_SYNC__KEEP_LOCAL", "true")
        .env("GATEWAY_SUPABASE__PATIENCE", "1min 30s")
        .env("GATEWAY_DOWNLOAD__VIA", "proxy")
        .env("GATEWAY_DOWNLOAD__CACHE_BYTES", "10GiB")
        .env("GATEWAY_SERVER__NODE", "node-1")
        .env("GATEWAY_SERVER__ALLOWED_ORIGINS", "https://rec.example.org,http://localhost:3000")
        .load()
        .unwrap()
        .config;
    assert_eq!(config.uploads.allowed_types, ["audio/webm", "video/*"]);
    assert_eq!(config.uploads.max_bytes, 5 << 30);
    assert_eq!(config.storage.min_free, 1000);
    assert!(config.sync.keep_local);
    assert_eq!(config.supabase.patience, Duration::from_secs(90));
    assert_eq!((config.download.via, config.download.cache_bytes), (DownloadVia::Proxy, 10 << 30));
    assert_eq!(config.server.node, "node-1");
    assert_eq!(config.server.allowed_origins, ["https://rec.example.org", "http://localhost:3000"]);
}

#[test]
fn variables_that_kubernetes_adds_are_not_mistakes() {
    let service = World::new()
        .env("GATEWAY_SERVICE_HOST", "10.0.0.1")
        .env("GATEWAY_SERVICE_PORT_HTTP", "8000")
        .env("GATEWAY_PORT", "tcp://10.0.0.1:8000")
        .env("GATEWAY_PORT_8000_TCP_ADDR", "10.0.0.1");
    assert_eq!(service.load().unwrap().config, Config::default());
    let typed = World::new().env("GATEWAY_PORT", "9000").mistakes();
    assert_eq!(typed, ["environment GATEWAY_PORT: is not a setting; did you mean GATEWAY_SERVER__PORT?"]);
}
