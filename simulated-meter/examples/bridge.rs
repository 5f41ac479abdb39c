//! A simulated meter behind TCP, for the clients of other stacks: wrapper of IEC 62056-47, one connection at a time.
//!
//!     bridge SUITE TITLE CLIENT_TITLE GUEK GBEK GAK KEK          (hexadecimal, the suite aside)
//!
//! Prints `port N` first. A line on standard input asks for more: `keys` prints those in use, `push` a DataNotification,
//! `reboot` restarts. It ends with its input.

use std::{
    io::{self, BufRead, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use simulated_meter::{Association, Dialect, Keys, Mechanism, Meter, Ordered, SetupOf, Title};

const USAGE: &str = "bridge SUITE TITLE CLIENT_TITLE GUEK GBEK GAK KEK";

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).ok());
    pairs.map(|two| u8::from_str_radix(two?, 16).ok()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ordered() -> Option<Ordered> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [suite, title, client, unicast, broadcast, authentication, kek] = args.as_slice() else {
        return None;
    };
    let title_of = |text: &str| Title::try_from(bytes(text)?).ok();
    let keys = Keys {
        unicast: bytes(unicast)?,
        broadcast: bytes(broadcast)?,
        authentication: bytes(authentication)?,
        kek: bytes(kek)?,
    };
    let title_of_client = title_of(client)?;
    let association = |client, setup, mechanism| Association {
        client,
        title: title_of_client,
        setup,
        mechanism,
        manages: true,
    };
    Some(Ordered {
        title: title_of(title)?,
        dialect: Dialect::BY_THE_BOOK,
        setups: vec![SetupOf { instance: 0, suite: suite.parse().ok()?, keys, first_counter: 1 }],
        associations: vec![
            association(1, Some(0), Mechanism::Gmac),
            association(16, None, Mechanism::Lowest),
        ],
        seed: 1,
        clock: 1_795_910_400,
    })
}

type Shared = Arc<Mutex<Meter>>;

/// Version, source, destination, length; two bytes each.
fn talk(meter: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let [0, 1, from_high, from_low, to_high, to_low, high, low] = header else {
            return Err(io::Error::other("no wrapper"));
        };
        let mut apdu = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        stream.read_exact(&mut apdu)?;
        let client = u16::from_be_bytes([from_high, from_low]);
        let said = meter.lock().unwrap_or_else(PoisonError::into_inner).receive(client, &apdu);
        let Some(said) = said else { continue };
        let [high, low] = u16::try_from(said.len()).map_err(io::Error::other)?.to_be_bytes();
        let header = [0, 1, to_high, to_low, from_high, from_low, high, low];
        stream.write_all(&[&header[..], &said].concat())?;
    }
}

fn obey(meter: &Shared) -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
        let said = match line?.as_str() {
            "keys" => meter.keys(0).map_or(String::new(), |it| {
                [&it.unicast, &it.broadcast, &it.authentication, &it.kek]
                    .map(|key| hex(key))
                    .join(" ")
            }),
            "push" => hex(&meter.push(0).unwrap_or_default()),
            "reboot" => {
                meter.reboot();
                "restarted".to_owned()
            }
            other => format!("unknown: {other}"),
        };
        println!("{said}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(ordered) = ordered() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let meter = Arc::new(Mutex::new(Meter::new(ordered)));
    let listening = || -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("port {}", listener.local_addr()?.port());
        let served = Arc::clone(&meter);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up, or sends what is no wrapper, is done; the next one may come.
                let _ = talk(&served, stream);
            }
        });
        obey(&meter)
    };
    match listening() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bridge: {error}");
            ExitCode::FAILURE
        }
    }
}
