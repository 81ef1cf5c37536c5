//! The line between a gateway and PostgreSQL, which breaks at the nth COMMIT: before the server hears of it, or after
//! it did and before the gateway hears that it is done.
//!
//! Apart from the proxy in front of the cloud: this one knows where in the conversation it is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How the line breaks, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Break {
    /// The COMMIT never arrives: the server takes everything back.
    BeforeCommit,
    /// The COMMIT is carried out, its answer is lost; a new connection works.
    AfterCommit,
    /// The same, and no other connection works until it is mended.
    AfterCommitForGood,
}

#[derive(Default)]
struct State {
    /// What is to happen after how many more COMMITs.
    next: Option<(usize, Break)>,
    down: bool,
    cuts: usize,
    refused: usize,
    connections: Vec<JoinHandle<()>>,
}

pub(super) struct Line {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    listening: JoinHandle<()>,
}

impl Line {
    pub(super) fn start(server: u16) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut state = shared.lock().unwrap();
                if state.down {
                    state.refused += 1;
                    let _ = client.set_zero_linger();
                    continue;
                }
                let inner = shared.clone();
                state.connections.push(tokio::spawn(async move {
                    let _ = carry(client, server, &inner).await;
                }));
            }
        });
        Self { address, state, listening }
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Breaks after `nth` more COMMITs.
    pub(super) fn break_at(&self, nth: usize, kind: Break) {
        self.state.lock().unwrap().next = Some((nth, kind));
    }

    pub(super) fn mend(&self) {
        let mut state = self.state.lock().unwrap();
        (state.next, state.down) = (None, false);
    }

    pub(super) fn cuts(&self) -> usize {
        self.state.lock().unwrap().cuts
    }

    /// Waits until connections were refused.
    pub(super) async fn was_found_down(&self) {
        let refused = || self.state.lock().unwrap().refused;
        let before = refused();
        while refused() < before + 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.listening.abort();
        for connection in self.state.lock().unwrap().connections.drain(..) {
            connection.abort();
        }
    }
}

async fn carry(mut client: TcpStream, server: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let mut database = TcpStream::connect(("127.0.0.1", server)).await?;
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let n = read?;
                if n == 0 || state.lock().unwrap().down {
                    return Ok(());
                }
                let is_commit = asked[..n].windows(7).any(|text| text == b"COMMIT\0");
                let cut = if is_commit { due(state) } else { None };
                if cut != Some(Break::BeforeCommit) {
                    database.write_all(&asked[..n]).await?;
                }
                if cut.is_some() {
                    let _ = client.set_zero_linger();
                    drop(client);
                    if cut != Some(Break::BeforeCommit) {
                        // The server is heard out, so that it has done it.
                        let _ = database.read(&mut answered).await;
                    }
                    return Ok(());
                }
            }
            read = database.read(&mut answered) => {
                let n = read?;
                if n == 0 {
                    return Ok(());
                }
                client.write_all(&answered[..n]).await?;
            }
        }
    }
}

/// Counts a COMMIT; what is to happen at it.
fn due(state: &Mutex<State>) -> Option<Break> {
    let mut state = state.lock().unwrap();
    let (left, kind) = state.next?;
    if left > 0 {
        state.next = Some((left - 1, kind));
        return None;
    }
    state.next = None;
    state.cuts += 1;
    state.down = kind == Break::AfterCommitForGood;
    Some(kind)
}
