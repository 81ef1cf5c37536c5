//! The processes that are measured: the gateway as it is released, nginx, and this program again in another role.
//!
//! Apart because a server's processor time and memory are those of its process: nothing under measurement runs in the
//! process that sends. Each ends with its value here.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

#[path = "../../tests/it/support/fake_supabase/mod.rs"]
mod fake_supabase;

use fake_supabase::{Bodies, FakeOptions, FakeSupabase, Fault, Matcher};

use super::floor;

/// Ticks a second in `/proc/PID/stat`: the same on every Linux, whatever the kernel's own clock (proc_pid_stat(5)).
const TICKS: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server. Stopped when dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// For a cloud: the key it takes.
    pub key: String,
}

impl Process {
    /// This program again, as the server `role`; see [`play`].
    pub fn role(role: &str, dir: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", role])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let (address, key) = line.trim().split_once(' ').context("the server did not start")?;
        Ok(Self { child, address: address.parse()?, key: key.to_owned() })
    }

    /// The gateway with its files in `dir`, perhaps with a cloud behind it; `settings` beside the defaults.
    pub fn gateway(dir: &Path, cloud: Option<&Process>, settings: &[&str]) -> anyhow::Result<Self> {
        let log = dir.join("gateway.log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_recording-gateway"));
        command
            .env_clear()
            .current_dir(dir)
            .args(["--port", "0", "--local-dir"])
            .arg(recordings(dir))
            .args(settings.iter().flat_map(|setting| ["--set", setting]));
        if let Some(cloud) = cloud {
            command.args(["--set", &format!("supabase.url=http://{}", cloud.address)]);
            command.env("SUPABASE_SERVICE_ROLE_KEY", &cloud.key);
        }
        let child = command.stdin(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let mut process = Self { child, address: ([127, 0, 0, 1], 0).into(), key: String::new() };
        process.address = process.wait_for("the gateway listens", || {
            let text = std::fs::read_to_string(&log).ok()?;
            let (_, rest) = text.split_once("\"address\":\"http://")?;
            rest.split_once('"')?.0.parse().ok()
        })?;
        Ok(process)
    }

    /// nginx serving the files below `root`; `more` are directives for its server. `None` if there is no nginx here.
    pub fn nginx(dir: &Path, root: &Path, more: &str) -> anyhow::Result<Option<Self>> {
        let Some(program) = installed("nginx") else { return Ok(None) };
        let address = free_address()?;
        let (dir, root) = (dir.display(), root.display());
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "{user} worker_processes auto; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; sendfile on; keepalive_requests 100000;\n\
             client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;\n\
             uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;\n\
             server {{ listen {address}; root {root}; {more} }} }}\n"
        );
        let path = PathBuf::from(format!("{dir}/nginx.conf"));
        std::fs::write(&path, config)?;
        Self::listening(Command::new(program).arg("-c").arg(&path).stderr(Stdio::null()), address).map(Some)
    }

    /// nginx ending TLS before the gateway, as the README has it, and the address to use instead. `None` if it, or openssl
    /// for a certificate, is not here.
    pub fn tls_before(gateway: &Self, dir: &Path) -> anyhow::Result<Option<(Self, String)>> {
        let (Some(openssl), Some(_)) = (installed("openssl"), installed("nginx")) else { return Ok(None) };
        let made = Command::new(openssl)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=localhost", "-days", "1", "-out", "tls.crt", "-keyout", "tls.key"])
            .current_dir(dir)
            .output()?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let secure = free_address()?;
        let directives = format!(
            "listen {secure} ssl http2; ssl_certificate {dir}/tls.crt; ssl_certificate_key {dir}/tls.key;\n\
             location / {{ proxy_pass {gateway}; proxy_http_version 1.1; proxy_set_header Host $host;\n\
             client_max_body_size 0; proxy_request_buffering off; proxy_buffering off; }}",
            dir = dir.display(),
            gateway = gateway.url(),
        );
        let proxy = Self::nginx(dir, dir, &directives)?;
        Ok(proxy.map(|proxy| (proxy, format!("https://{secure}"))))
    }

    /// Where it is, for whoever speaks HTTP in the clear.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Any server that `command` starts and that is to listen at `address`.
    pub fn listening(command: &mut Command, address: SocketAddr) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut process = Self { child, address, key: String::new() };
        let what = format!("{} listens", command.get_program().display());
        process.wait_for(&what, || TcpStream::connect(address).ok())?;
        Ok(process)
    }

    fn wait_for<T>(&mut self, what: &str, reached: impl Fn() -> Option<T>) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = reached() {
                return Ok(value);
            }
            ensure!(start.elapsed() < PATIENCE, "not reached: {what}");
            ensure!(self.child.try_wait()?.is_none(), "ended before {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Seconds of processor time so far, user and system, children included.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        // Fields 14 to 17: its own, and that of children which ended.
        let ticks = |stat: &Stat| (14..=17).map(|n| stat.field(n)).sum::<Option<f64>>();
        let family = self.family()?.iter().map(ticks).sum::<Option<f64>>();
        Ok(family.context("no times in a stat")? / TICKS)
    }

    /// Most resident memory so far, in MiB, children included: each counts with its own peak, whenever that was.
    pub fn peak_mib(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for stat in self.family()? {
            let status = std::fs::read_to_string(format!("/proc/{}/status", stat.pid))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
            sum += line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
        }
        Ok(sum)
    }

    /// Files and sockets that it has open now.
    pub fn descriptors(&self) -> anyhow::Result<f64> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count() as f64)
    }

    /// The process and those that descend from it.
    fn family(&self) -> anyhow::Result<Vec<Stat>> {
        let mut others = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            // Others come and go meanwhile.
            let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            others.extend(pid.and_then(Stat::read));
        }
        let own = Stat::read(self.child.id()).context("the server is gone")?;
        let mut family = vec![own];
        let mut next = 0;
        while let Some(parent) = family.get(next).map(|stat| stat.pid) {
            family.extend(others.extract_if(.., |stat| stat.field(4) == Some(f64::from(parent))));
            next += 1;
        }
        Ok(family)
    }
}

/// A process as `/proc/PID/stat` has it.
struct Stat {
    pid: u32,
    /// From field 3 on; the name in field 2 may hold anything but ends with the last bracket.
    fields: String,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, fields: stat.rsplit_once(") ")?.1.to_owned() })
    }

    fn field(&self, n: usize) -> Option<f64> {
        self.fields.split(' ').nth(n - 3)?.parse().ok()
    }
}

/// Where a program is, also one that only administrators have in their path.
pub fn installed(program: &str) -> Option<PathBuf> {
    let places = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    places.split(':').map(|place| Path::new(place).join(program)).find(|path| path.is_file())
}

/// An address that nobody listens at, for servers that do not tell theirs.
pub fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

impl Drop for Process {
    fn drop(&mut self) {
        // In order, so that workers go with their master; at once for whoever takes his time.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line to a distant cloud carries in a second: a Gbit.
const LINE_BYTES: u64 = 125_000_000;

/// Where a gateway started in `dir` keeps its recordings.
pub fn recordings(dir: &Path) -> PathBuf {
    dir.join("recordings")
}

/// Plays a server until the program that started it goes: tells its address and key in one line first.
pub fn play(role: &str) -> anyhow::Result<()> {
    let listen = || -> anyhow::Result<TcpListener> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("{} -", listener.local_addr()?);
        Ok(listener)
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    match role {
        "bare-loop" => Ok(floor::serve(listen()?, Path::new("."))?),
        "discard" => floor::serve_discarding(listen()?),
        "cloud" => cloud(None),
        "cloud-on-a-line" => cloud(Some(Fault::SlowRead(LINE_BYTES))),
        "black-hole" => cloud(Some(Fault::BlackHole)),
        _ => bail!("no such role: {role}"),
    }
}

/// The fake project of the test suite; it counts and digests (MD5, as the real server does) what it gets.
fn cloud(uploads: Option<Fault>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let options = FakeOptions { bodies: Bodies::Discard, ..FakeOptions::default() };
        let cloud = FakeSupabase::start_with(options).await;
        if let Some(fault) = uploads {
            cloud.fault(fault, Matcher::any().method("POST").path("/object/interview-recordings/"));
        }
        println!("{} {}", cloud.address(), cloud.service_key());
        std::future::pending().await
    })
}
