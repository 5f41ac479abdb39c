//! The attacks on the server. Each attack repeats itself until its time is over, never faster than it
//! says: it is not the processor of one machine that is fought for here.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt as _, task::JoinSet};

use super::{
    load::{Begun, Line, Outcome, Target, USUAL, batch, field, framed, prefix},
    peers::{peer_floods, peer_follows, peer_half_open, peer_stalls},
};

macro_rules! attacks {
    ($($(#[$doc:meta])* $attack:ident = $name:literal => $run:ident;)*) => {
        /// One kind of hostile load.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attack {
            $($(#[$doc])* $attack,)*
        }

        impl Attack {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$attack,)*];

            /// As the command line has it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$attack => $name,)*
                }
            }

            pub(super) async fn run(self, target: &Target, until: Instant) -> Outcome<()> {
                match self {
                    $(Self::$attack => $run(target, until).await,)*
                }
            }
        }
    };
}

attacks! {
    /// Forty messages of a stream, all but their ends.
    HalfSent = "half-sent messages" => half_sent;
    /// The same, a byte a second.
    OneByte = "a byte a second" => one_byte;
    /// Sixty streams whose answers nobody reads.
    Unread = "unread streams" => unread;
    /// Twenty connections with a thousand open streams each.
    ManyStreams = "many streams" => many_streams;
    /// Unary batches of 16 MiB, eight at a time.
    Huge = "messages of 16 MiB" => huge;
    /// Streams that are reset at once.
    Resets = "stream resets" => resets;
    /// Headers as long as they may be, and longer.
    Headers = "header bombs" => headers;
    /// 16 MiB of empty meter ids.
    EmptyIds = "empty ids" => empty_ids;
    /// 16 MiB of empty lines of an import.
    Imports = "imports of 16 MiB" => imports;
    /// 16 MiB of empty keys in one line of an import.
    ImportKeys = "empty keys" => import_keys;
    /// Windows full of data on as many connections as there are.
    Windows = "full windows" => windows;
    /// TLS with a certificate, and no HTTP/2 after it.
    NoPreface = "TLS without preface" => no_preface;
    /// TCP, and nothing after it.
    TcpOnly = "TCP only" => tcp_only;
    /// The beginning of a handshake, then a byte a second.
    SlowHandshake = "slow handshakes" => slow_handshake;
    /// Handshakes without a certificate.
    Strangers = "no certificate" => strangers;
    /// The other site asks for all blocks and their proofs, on eight connections.
    PeerFloods = "a flood by the peer" => peer_floods;
    /// The other site begins to follow as often as it may, and reads nothing.
    PeerFollows = "unread followers" => peer_follows;
    /// The other site's server stands still; its connections stay open.
    PeerStalls = "a stalled peer" => peer_stalls;
    /// What comes from the other site gets lost, again and again; its connections stay open.
    PeerHalfOpen = "a half-open connection" => peer_half_open;
}

impl Attack {
    /// Whether it is made by the other site.
    pub const fn is_by_a_peer(self) -> bool {
        matches!(self, Self::PeerFloods | Self::PeerFollows | Self::PeerStalls | Self::PeerHalfOpen)
    }
}

/// Connections of an attack that wants all places, some more than there are.
const CROWD: usize = 1_300;
/// The length of the longest messages, in bytes: one less than the server's bound.
const LONGEST: usize = kms_core::wire::MESSAGE_BYTES_MAX - 1;

pub(super) fn over(until: Instant) -> bool {
    Instant::now() >= until
}

pub(super) async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Waits for the end of the attack while what was opened stays open.
pub(super) async fn hold<T>(open: T, until: Instant) {
    tokio::time::sleep_until(until.into()).await;
    drop(open);
}

async fn half_sent(target: &Target, until: Instant) -> Outcome<()> {
    let mut lines = Vec::new();
    for _ in 0..4 {
        lines.push(target.http2(USUAL).await?);
    }
    let half = [&prefix(LONGEST)[..], &vec![0x0A; 15 << 20]].concat();
    let half = bytes::Bytes::from(half);
    let mut sending = JoinSet::new();
    for number in 0..40 {
        let (begun, half) =
            (lines[number % 4].begin("Ciphering/DecryptStream", 0).await, half.clone());
        sending.spawn(async move {
            let mut begun = begun?;
            begun.send(half, false).await?;
            hold(begun, until).await;
            Outcome::Ok(())
        });
    }
    while sending.join_next().await.is_some() {
        if over(until) {
            break;
        }
    }
    Ok(())
}

async fn one_byte(target: &Target, until: Instant) -> Outcome<()> {
    let (mut lines, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let line = target.http2(USUAL).await?;
        for _ in 0..100 {
            let mut begun = line.begin("Ciphering/DecryptStream", 0).await?;
            begun.send(prefix(LONGEST).to_vec().into(), false).await?;
            calls.push(begun);
        }
        lines.push(line);
    }
    while !over(until) && !calls.is_empty() {
        pause(1_000).await;
        let mut left = Vec::new();
        for mut begun in calls {
            if begun.send(vec![0x0A].into(), false).await.is_ok() {
                left.push(begun);
            }
        }
        calls = left;
    }
    Ok(())
}

async fn unread(target: &Target, until: Instant) -> Outcome<()> {
    let message = batch(&target.telegram, 4_000);
    let (mut lines, mut sending) = (Vec::new(), JoinSet::new());
    for _ in 0..6 {
        let line = target.http2(USUAL).await?;
        for _ in 0..10 {
            let (begun, message) =
                (line.begin("Ciphering/DecryptStream", 0).await, message.clone());
            sending.spawn(async move {
                let mut begun = begun?;
                for _ in 0..12 {
                    begun.send(message.clone(), false).await?;
                }
                hold(begun, until).await;
                Outcome::Ok(())
            });
        }
        lines.push(line);
    }
    while sending.join_next().await.is_some() {}
    Ok(())
}

async fn many_streams(target: &Target, until: Instant) -> Outcome<()> {
    let (mut lines, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let line = target.http2(USUAL).await?;
        for _ in 0..1_000 {
            match tokio::time::timeout(
                Duration::from_millis(100),
                line.begin("Ciphering/DecryptStream", 0),
            )
            .await
            {
                Ok(Ok(begun)) => calls.push(begun),
                Ok(Err(_)) | Err(_) => break,
            }
            if calls.len().is_multiple_of(50) {
                pause(2).await;
            }
        }
        lines.push(line);
    }
    hold((lines, calls), until).await;
    Ok(())
}

/// One message on eight connections, again and again.
pub(super) async fn repeat(
    target: &Target,
    until: Instant,
    call: &str,
    message: bytes::Bytes,
) -> Outcome<()> {
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (target, message, call) = (target.clone(), message.clone(), call.to_owned());
        callers.spawn(async move {
            while !over(until) {
                if let Ok(line) = target.http2(USUAL).await {
                    while line.is_up() && !over(until) {
                        let _ = once(&line, &call, message.clone()).await;
                        pause(100).await;
                    }
                }
                pause(50).await;
            }
        });
    }
    while callers.join_next().await.is_some() {}
    Ok(())
}

async fn once(line: &Line, call: &str, message: bytes::Bytes) -> Outcome<()> {
    let mut begun: Begun = line.begin(call, 0).await?;
    let sent = begun.send(message, true);
    tokio::time::timeout(Duration::from_secs(5), sent).await??;
    tokio::time::timeout(Duration::from_secs(5), begun.read()).await??;
    Ok(())
}

async fn huge(target: &Target, until: Instant) -> Outcome<()> {
    const BYTES: usize = LONGEST - 64;
    let message =
        framed(&[field(1, &vec![0xDB; BYTES]), field(2, &[0xBF, 0xFF, 0xFF, 0x07])].concat());
    repeat(target, until, "Ciphering/DecryptBatch", message).await
}

async fn empty_ids(target: &Target, until: Instant) -> Outcome<()> {
    let message = framed(&[0x22, 0].repeat(LONGEST / 2));
    repeat(target, until, "Ciphering/DecryptBatch", message).await
}

async fn imports(target: &Target, until: Instant) -> Outcome<()> {
    let message = framed(&[0x12, 0].repeat(LONGEST / 2));
    repeat(target, until, "Meters/ImportMeters", message).await
}

async fn import_keys(target: &Target, until: Instant) -> Outcome<()> {
    let meter = [0x22, 0].repeat(LONGEST / 2 - 32);
    let message = framed(&field(2, &field(2, &meter)));
    repeat(target, until, "Meters/ImportMeters", message).await
}

async fn resets(target: &Target, until: Instant) -> Outcome<()> {
    let lines = [target.http2(USUAL).await?, target.http2(USUAL).await?];
    let start = [&prefix(LONGEST)[..], &[0x0A; 16_000]].concat();
    while !over(until) {
        for line in &lines {
            for _ in 0..10 {
                let mut begun = line.begin("Ciphering/DecryptStream", 0).await?;
                begun.send(start.clone().into(), false).await?;
                begun.reset();
            }
        }
        pause(50).await;
    }
    Ok(())
}

async fn headers(target: &Target, until: Instant) -> Outcome<()> {
    let (mut lines, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let line = target.http2(USUAL).await?;
        for number in 0..300 {
            let padding = if number % 10 == 9 { 60_000 } else { 15_000 };
            match tokio::time::timeout(
                Duration::from_millis(100),
                line.begin("Ciphering/DecryptStream", padding),
            )
            .await
            {
                Ok(Ok(begun)) => calls.push(begun),
                Ok(Err(_)) | Err(_) => break,
            }
            if number % 10 == 0 {
                pause(2).await;
            }
        }
        lines.push(line);
    }
    hold((lines, calls), until).await;
    Ok(())
}

async fn windows(target: &Target, until: Instant) -> Outcome<()> {
    // Whole messages whose answers nobody reads keep what comes after them in the server's windows.
    let message = batch(&target.telegram, 4_000);
    let fill = [&prefix(LONGEST)[..], &vec![0x0A; 5 << 20]].concat();
    let fill = bytes::Bytes::from(fill);
    let (mut lines, mut sending) = (Vec::new(), JoinSet::new());
    for number in 0..200 {
        let Ok(line) = target.http2((0, 65_535)).await else { break };
        let first = if number < 40 { message.clone() } else { fill.clone() };
        for _ in 0..6 {
            let (begun, first, fill) =
                (line.begin("Ciphering/DecryptStream", 0).await, first.clone(), fill.clone());
            sending.spawn(async move {
                let mut begun = begun?;
                begun.send(first, false).await?;
                begun.send(fill, false).await?;
                hold(begun, until).await;
                Outcome::Ok(())
            });
        }
        lines.push(line);
        pause(10).await;
    }
    while sending.join_next().await.is_some() {}
    Ok(())
}

async fn no_preface(target: &Target, until: Instant) -> Outcome<()> {
    let mut open = Vec::new();
    while !over(until) && open.len() < CROWD {
        match target.tls(true).await {
            Ok(stream) => open.push(stream),
            Err(_) => pause(50).await,
        }
    }
    hold(open, until).await;
    Ok(())
}

async fn tcp_only(target: &Target, until: Instant) -> Outcome<()> {
    let mut open = Vec::new();
    while !over(until) {
        if let Ok(stream) = target.tcp().await {
            open.push(stream);
        }
        if open.len().is_multiple_of(50) {
            pause(40).await;
        }
        // The oldest connections are dropped, and as many are opened anew.
        if open.len() >= CROWD {
            open.drain(..100);
            pause(200).await;
        }
    }
    Ok(())
}

async fn slow_handshake(target: &Target, until: Instant) -> Outcome<()> {
    // A record of a handshake that will have 512 bytes.
    const BEGUN: [u8; 9] = [22, 3, 1, 2, 0, 1, 0, 1, 0xFC];
    let mut open = Vec::new();
    while !over(until) {
        while open.len() < CROWD && !over(until) {
            let Ok(mut stream) = target.tcp().await else { break };
            if stream.write_all(&BEGUN).await.is_ok() {
                open.push(stream);
            }
            if open.len().is_multiple_of(50) {
                pause(40).await;
            }
        }
        pause(1_000).await;
        let mut left = Vec::new();
        for mut stream in open {
            if stream.write_all(&[3]).await.is_ok() {
                left.push(stream);
            }
        }
        open = left;
    }
    Ok(())
}

async fn strangers(target: &Target, until: Instant) -> Outcome<()> {
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let target = target.clone();
        callers.spawn(async move {
            while !over(until) {
                let _ = target.tls(false).await;
                pause(10).await;
            }
        });
    }
    while callers.join_next().await.is_some() {}
    Ok(())
}
