//! A real PostgreSQL server of the tests' own: started by the first test that asks, on a free port of the loopback,
//! with a database for each. It ends with the test program, however that ends.
//!
//! Apart so that no suite starts a server in a way of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use url::Url;

use super::skip::skip_or_fail;

/// Nothing here is worth a flush, and the machine may be busy.
const SETTINGS: [&str; 4] =
    ["fsync=off", "max_connections=300", "unix_socket_directories=", "listen_addresses=127.0.0.1"];

/// A new database. `None` where there is no PostgreSQL: the suite then says so by name and passes.
pub async fn database(suite: &str) -> Option<Url> {
    static SERVER: OnceLock<Option<u16>> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let server = tokio::task::spawn_blocking(|| *SERVER.get_or_init(start)).await.unwrap();
    let Some(port) = server else {
        skip_or_fail(suite, "PostgreSQL is not installed");
        return None;
    };
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = sqlx::PgPool::connect(&address(port, "postgres")).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&admin).await.unwrap();
    admin.close().await;
    Some(address(port, &name).parse().unwrap())
}

fn address(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

/// Debian keeps the server's programs out of the path.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    versions.retain(|bin| bin.join("initdb").exists());
    versions.sort();
    versions.pop()
}

/// The server refuses to run as root.
fn command(program: &Path) -> Command {
    let is_root = rustix::process::geteuid().is_root();
    let mut command = Command::new("setpriv");
    if is_root {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg("--pdeathsig=KILL").arg(program).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn start() -> Option<u16> {
    let bin = programs()?;
    let dir = fresh_directory();
    let data = dir.join("data");
    let made = command(&bin.join("initdb"))
        .args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "-D",
        ])
        .arg(&data)
        .current_dir(&dir)
        .status()
        .ok()?;
    assert!(made.success(), "initdb failed: {made}");
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let mut server = command(&bin.join("postgres"));
    server.arg("-D").arg(&data).args(["-p", &port.to_string()]).current_dir(&dir);
    for setting in SETTINGS {
        server.args(["-c", setting]);
    }
    // The kernel ends the server with the thread that started it, so that thread stays.
    let (told, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _server = server.spawn().unwrap();
        told.send(()).unwrap();
        loop {
            std::thread::park();
        }
    });
    started.recv().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready(&bin, port) {
        assert!(Instant::now() < deadline, "PostgreSQL did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(port)
}

fn ready(bin: &Path, port: u16) -> bool {
    let mut ask = Command::new(bin.join("pg_isready"));
    ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
    ask.status().is_ok_and(|status| status.success())
}

/// A directory that the server's user may write; those of test programs that are gone are removed.
fn fresh_directory() -> PathBuf {
    const PREFIX: &str = "recording-gateway-postgres-";
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(PREFIX)
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    if rustix::process::geteuid().is_root() {
        let owned = Command::new("chown").arg("postgres").arg(&dir).status().unwrap();
        assert!(owned.success());
    }
    dir
}
