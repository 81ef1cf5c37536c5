//! A real PostgreSQL server of the tests' own: started by the first test that asks, on a free port of the loopback,
//! with a database for each. It ends with the test program, however that ends. A test that stops its server has one to
//! itself, and so has one that wants a pooler in front.
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
    let server = tokio::task::spawn_blocking(|| {
        *SERVER.get_or_init(|| start(&fresh_directory()).map(|server| server.port))
    });
    match server.await.unwrap() {
        Some(port) => Some(new_database(port).await),
        None => {
            skip_or_fail(suite, "PostgreSQL is not installed");
            None
        }
    }
}

async fn new_database(port: u16) -> Url {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = sqlx::PgPool::connect(&address(port, "postgres")).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&admin).await.unwrap();
    admin.close().await;
    address(port, &name).parse().unwrap()
}

/// A server that one test has alone, to stop and start it.
pub struct OwnServer {
    dir: PathBuf,
    started: Option<Started>,
    port: u16,
}

impl OwnServer {
    /// Started. `None` where there is no PostgreSQL: the suite then says so by name and passes.
    pub async fn start(suite: &str) -> Option<Self> {
        let started = tokio::task::spawn_blocking(|| {
            let dir = fresh_directory();
            start(&dir).map(|started| (dir, started))
        });
        let Some((dir, started)) = started.await.unwrap() else {
            skip_or_fail(suite, "PostgreSQL is not installed");
            return None;
        };
        Some(Self { dir, port: started.port, started: Some(started) })
    }

    /// A new database on it.
    pub async fn database(&self) -> Url {
        new_database(self.port).await
    }

    /// Ends it at once, as a crash would; every connection breaks.
    pub async fn stop(&mut self) {
        let server = self.started.take().expect("it runs");
        rustix::process::kill_process(server.pid, rustix::process::Signal::QUIT).unwrap();
        let process = Path::new("/proc").join(server.pid.as_raw_nonzero().to_string());
        super::eventually("PostgreSQL has ended", async || !process.exists()).await;
    }

    /// Starts it again where it was.
    pub async fn start_again(&mut self) {
        let (dir, port) = (self.dir.clone(), self.port);
        let started = tokio::task::spawn_blocking(move || run(&programs().unwrap(), &dir, port));
        self.started = Some(started.await.unwrap());
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(server) = self.started.take() {
            let _ = rustix::process::kill_process(server.pid, rustix::process::Signal::QUIT);
        }
    }
}

/// A pooler in transaction mode in front of the server of `database`, with few connections, so that transactions of
/// one client get now this one and now that. `None` where there is none: the suite then says so by name and passes.
pub async fn pooled(suite: &str, database: &Url) -> Option<Url> {
    let program = Path::new("/usr/sbin/pgbouncer");
    if !program.exists() {
        skip_or_fail(suite, "pgbouncer is not installed");
        return None;
    }
    let (dir, port) = (fresh_directory(), free_port());
    let config = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
         default_pool_size = 4\nmax_client_conn = 200\nignore_startup_parameters = extra_float_digits\n",
        database.port().unwrap()
    );
    let path = dir.join("pgbouncer.ini");
    std::fs::write(&path, config).unwrap();
    let mut pooler = command(program);
    pooler.arg(&path).current_dir(&dir);
    spawn(pooler);
    super::eventually("pgbouncer listens", async || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
    .await;
    let mut url = database.clone();
    url.set_port(Some(port)).unwrap();
    Some(url)
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

struct Started {
    port: u16,
    pid: rustix::process::Pid,
}

fn start(dir: &Path) -> Option<Started> {
    let bin = programs()?;
    let made = command(&bin.join("initdb"))
        .args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "-D",
        ])
        .arg(dir.join("data"))
        .current_dir(dir)
        .status()
        .ok()?;
    assert!(made.success(), "initdb failed: {made}");
    Some(run(&bin, dir, free_port()))
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn run(bin: &Path, dir: &Path, port: u16) -> Started {
    let mut server = command(&bin.join("postgres"));
    server.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]).current_dir(dir);
    for setting in SETTINGS {
        server.args(["-c", setting]);
    }
    let pid = spawn(server);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready(bin, port) {
        assert!(Instant::now() < deadline, "PostgreSQL did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Started { port, pid }
}

/// The kernel ends the program with the thread that started it, so that thread stays until the program has ended.
fn spawn(mut command: Command) -> rustix::process::Pid {
    let (told, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut child = command.spawn().unwrap();
        told.send(rustix::process::Pid::from_child(&child)).unwrap();
        let _ = child.wait();
    });
    started.recv().unwrap()
}

fn ready(bin: &Path, port: u16) -> bool {
    let mut ask = Command::new(bin.join("pg_isready"));
    ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
    ask.status().is_ok_and(|status| status.success())
}

/// A directory that the server's user may write; those of test programs that are gone are removed.
fn fresh_directory() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    const PREFIX: &str = "recording-gateway-postgres-";
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next())
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("{PREFIX}{}-{count}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    if rustix::process::geteuid().is_root() {
        let owned = Command::new("chown").arg("postgres").arg(&dir).status().unwrap();
        assert!(owned.success());
    }
    dir
}
