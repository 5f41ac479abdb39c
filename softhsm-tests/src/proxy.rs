//! A TCP proxy that treats each connection as badly as it is told to: it delays, cuts, resets, goes silent or
//! swallows, at one byte of one direction, and the same again for the same plan or seed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// The manner in which a direction fails once its byte is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Both connections are reset (RST).
    Reset,
    /// Both connections are closed in order (FIN).
    Close,
    /// Nothing more is read from this side; everything stays open.
    Silent,
    /// Everything more from this side is read and thrown away; everything stays open.
    Swallow,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reset, Self::Close, Self::Silent, Self::Swallow];
}

/// From whom the bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    Up,
    /// From the server.
    Down,
}

/// The treatment of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The way, the bytes of it that pass before, and the manner. `None`: it is left alone.
    pub fault: Option<(Way, u64, Manner)>,
    /// Each piece waits this long before it is passed on.
    pub delay: Duration,
}

impl Plan {
    /// Nothing is done to it.
    pub const PASS: Self = Self { fault: None, delay: Duration::ZERO };

    /// One fault.
    pub fn fault(way: Way, after: u64, manner: Manner) -> Self {
        Self { fault: Some((way, after, manner)), ..Self::PASS }
    }

    /// A fault within the first `bytes_max` bytes and a delay of at most 3 ms: the same for the same seed.
    pub fn by_seed(seed: u64, bytes_max: u64) -> Self {
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)) % bound.max(1)
        };
        let way = if below(2) == 0 { Way::Up } else { Way::Down };
        let manner = match below(4) {
            0 => Manner::Reset,
            1 => Manner::Close,
            2 => Manner::Silent,
            _ => Manner::Swallow,
        };
        Self {
            fault: Some((way, below(bytes_max), manner)),
            delay: Duration::from_millis(below(4)),
        }
    }
}

/// Bytes that were passed on over one connection.
#[derive(Debug, Default)]
struct Passed {
    up: AtomicU64,
    down: AtomicU64,
}

/// What is done to all connections that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Reset,
    Swallow,
}

/// Listens until it is dropped; then all of its connections are closed.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    passed: Arc<Mutex<Vec<Arc<Passed>>>>,
    cut: watch::Sender<Cut>,
    task: JoinHandle<()>,
}

/// The longest time for the two ends to read what came before a FIN.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Proxy {
    /// In front of `server`. `plan` is asked once for each connection, with its number from 0.
    pub async fn start(
        server: SocketAddr,
        plan: impl Fn(usize) -> Plan + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, server, plan).await
    }

    /// The same, on another address of this machine.
    pub async fn start_at(
        here: Ipv4Addr,
        server: SocketAddr,
        plan: impl Fn(usize) -> Plan + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((here, 0)).await?;
        let address = listener.local_addr()?;
        let passed = Arc::<Mutex<Vec<Arc<Passed>>>>::default();
        let (cut, cuts) = watch::channel(Cut::Reset);
        let list = Arc::clone(&passed);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // The test that needs it will say that nobody answers.
                        let Ok((client, _)) = accepted else { return };
                        let mine = Arc::<Passed>::default();
                        let number = {
                            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                            list.push(Arc::clone(&mine));
                            list.len() - 1
                        };
                        let (plan, cuts) = (plan(number), cuts.clone());
                        connections.spawn(async move {
                            // Without a server the client sees its connection closed.
                            if let Ok(server) = TcpStream::connect(server).await {
                                carry(client, server, plan, &mine, cuts).await;
                            }
                        });
                    }
                    Some(_) = connections.join_next(), if !connections.is_empty() => {}
                }
            }
        });
        Ok(Self { address, passed, cut, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of connections that were made.
    pub fn connections(&self) -> usize {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Bytes that went up and down over the connection with this number.
    pub fn passed(&self, connection: usize) -> (u64, u64) {
        let list = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        list.get(connection).map_or((0, 0), |passed| {
            (passed.up.load(Ordering::Relaxed), passed.down.load(Ordering::Relaxed))
        })
    }

    /// Resets all connections that are open now.
    pub fn reset_all(&self) {
        self.cut.send_replace(Cut::Reset);
    }

    /// Has both directions of all connections that are open now swallowed, as when the host vanishes.
    pub fn swallow_all(&self) {
        self.cut.send_replace(Cut::Swallow);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The end of a direction.
enum End {
    Reset,
    Close,
    /// From outside.
    Cut,
}

/// Reads and throws away what comes from both, until all connections are reset.
async fn swallow(client: &mut TcpStream, server: &mut TcpStream, cuts: &mut watch::Receiver<Cut>) {
    let throw_away = async |socket: &mut TcpStream| {
        let mut buffer = [0; 4 << 10];
        while socket.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
        // Its end is swallowed, too.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = throw_away(client) => {}
        () = throw_away(server) => {}
        _ = cuts.wait_for(|cut| *cut == Cut::Reset) => {}
    }
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    plan: Plan,
    passed: &Passed,
    mut cuts: watch::Receiver<Cut>,
) {
    cuts.mark_unchanged();
    _ = (client.set_nodelay(true), server.set_nodelay(true));
    let fault_of =
        |way| plan.fault.filter(|(on, ..)| *on == way).map(|(_, after, manner)| (after, manner));
    let end = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::select! {
            end = one_way(from_client, to_server, fault_of(Way::Up), plan.delay, &passed.up) => end,
            end = one_way(from_server, to_client, fault_of(Way::Down), plan.delay, &passed.down) => end,
            _ = cuts.changed() => End::Cut,
        }
    };
    let end = match end {
        End::Cut if *cuts.borrow_and_update() == Cut::Swallow => {
            swallow(&mut client, &mut server, &mut cuts).await;
            End::Reset
        }
        End::Cut => End::Reset,
        end => end,
    };
    match end {
        End::Reset | End::Cut => _ = (client.set_zero_linger(), server.set_zero_linger()),
        End::Close => {
            _ = (client.shutdown().await, server.shutdown().await);
            // Dropped with something unread, a socket would send a reset after all.
            let drain = async |mut socket: TcpStream| {
                let mut buffer = [0; 4 << 10];
                while socket.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
            };
            let drained = async { tokio::join!(drain(client), drain(server)) };
            _ = timeout(LAST_WORDS, drained).await;
        }
    }
}

async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    fault: Option<(u64, Manner)>,
    delay: Duration,
    passed: &AtomicU64,
) -> End {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let left = fault.map_or(u64::MAX, |(after, _)| after - passed.load(Ordering::Relaxed));
        if left == 0 {
            match fault.map(|(_, manner)| manner) {
                Some(Manner::Reset) => return End::Reset,
                Some(Manner::Silent) => std::future::pending().await,
                Some(Manner::Swallow) => {
                    while from.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
                    return End::Close;
                }
                Some(Manner::Close) | None => return End::Close,
            }
        }
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let len = match from.read(&mut buffer[..room]).await {
            Ok(0) => return End::Close,
            Ok(len) => len,
            Err(_) => return End::Reset,
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return End::Reset;
        }
        passed.fetch_add(len as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends everything back, behind a proxy with this plan.
    async fn echo(plan: Plan) -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let proxy = Proxy::start(server, move |_| plan).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client)
    }

    /// The bytes that come back of ten, and the end of the reading: `None`, if not within a moment.
    async fn ten(client: &mut TcpStream) -> (Vec<u8>, Option<io::Result<()>>) {
        client.write_all(b"0123456789").await.unwrap();
        let mut back = Vec::new();
        let read = timeout(Duration::from_millis(300), client.read_to_end(&mut back)).await;
        (back, read.ok().map(|end| end.map(drop)))
    }

    #[tokio::test]
    async fn each_manner_ends_a_direction_at_its_byte_and_in_its_way() {
        for way in [Way::Up, Way::Down] {
            for manner in Manner::ALL {
                let (proxy, mut client) = echo(Plan::fault(way, 4, manner)).await;
                let (back, end) = ten(&mut client).await;
                let what = format!("{way:?} {manner:?}: {end:?}");
                // Bytes on their way back when both ends were closed may be lost with them.
                let ends = matches!(manner, Manner::Reset | Manner::Close);
                assert!(back == b"0123" || ends && b"0123".starts_with(&back), "{what}");
                match manner {
                    Manner::Reset => assert_eq!(
                        end.unwrap().unwrap_err().kind(),
                        io::ErrorKind::ConnectionReset,
                        "{way:?}"
                    ),
                    Manner::Close => assert!(end.unwrap().is_ok(), "{way:?}"),
                    Manner::Silent | Manner::Swallow => assert!(end.is_none(), "{what}"),
                }
                let (up, down) = proxy.passed(0);
                assert_eq!(if way == Way::Up { up } else { down }, 4, "{what}");
            }
        }
    }

    #[tokio::test]
    async fn a_swallowed_direction_is_read_and_a_silent_one_is_not() {
        for (manner, takes_all) in [(Manner::Swallow, true), (Manner::Silent, false)] {
            let (_proxy, mut client) = echo(Plan::fault(Way::Up, 4, manner)).await;
            // More than all buffers between the two hold.
            let flood = vec![0; 32 << 20];
            let written = timeout(Duration::from_secs(3), client.write_all(&flood)).await;
            assert_eq!(written.is_ok_and(|written| written.is_ok()), takes_all, "{manner:?}");
        }
    }

    #[tokio::test]
    async fn without_a_fault_all_comes_through_until_it_is_reset() {
        let delay = Duration::from_millis(20);
        let (proxy, mut client) = echo(Plan { delay, ..Plan::PASS }).await;
        let begun = std::time::Instant::now();
        let (back, end) = ten(&mut client).await;
        assert!(back == b"0123456789" && end.is_none() && begun.elapsed() >= 2 * delay);
        proxy.reset_all();
        let error = client.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(proxy.connections(), 1);
    }

    #[tokio::test]
    async fn a_host_that_vanished_says_nothing_until_it_is_reset() {
        let (proxy, mut client) = echo(Plan::PASS).await;
        assert_eq!(ten(&mut client).await.0, b"0123456789");
        proxy.swallow_all();
        let (back, end) = ten(&mut client).await;
        assert!(back.is_empty() && end.is_none(), "{back:?} {end:?}");
        proxy.reset_all();
        let error = client.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_seed_gives_one_plan_and_seeds_give_all_kinds() {
        let plans: Vec<_> = (0..200).map(|seed| Plan::by_seed(seed, 1_000)).collect();
        assert_eq!(plans, (0..200).map(|seed| Plan::by_seed(seed, 1_000)).collect::<Vec<_>>());
        for manner in Manner::ALL {
            for way in [Way::Up, Way::Down] {
                let is_it = |plan: &&Plan| {
                    plan.fault.is_some_and(|(on, at, how)| (on, how) == (way, manner) && at < 1_000)
                };
                assert!(plans.iter().find(is_it).is_some(), "{way:?} {manner:?}");
            }
        }
    }
}
