//! A second site joins: both token and database are its own, and what crosses is wrapped for its token. By the real
//! programs, each site in a directory of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{fs, path::PathBuf};

use common::{
    Home,
    fleet::{add, apdu, line, line_in_hsm, push},
    home_with,
};
use kms_client::{ClientConfig, KmsClient, Verdict};
use softhsm_tests::{AmiTool, Programs, Role, Setting, Site, SiteOptions};
use sqlx::{Connection as _, Row as _, SqliteConnection};

/// The site that writes; enrolment takes two people there.
fn first() -> Home {
    home_with(&[("rpc", "dual_control", "[\"Site/EnrolPeer\"]")])
}

/// A site of odd epochs that has nothing yet.
fn second(name: &str, module: Option<PathBuf>) -> Home {
    let dir = tempfile::Builder::new().prefix("kms-site-").tempdir_in("/dev/shm").unwrap();
    let mut settings = vec![Setting { section: "site", key: "even", value: "false".to_owned() }];
    if let Some(module) = module {
        let value = format!("{:?}", module.display().to_string());
        settings.push(Setting { section: "hsm", key: "module", value });
    }
    let options = SiteOptions { name: name.to_owned(), settings, ..SiteOptions::default() };
    let site = Site::make(dir.path(), Programs::find().unwrap(), options).unwrap();
    Home { site, dir }
}

/// Exit code and what was said, on both ways.
fn server(site: &Site, verb: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = site.command(verb).args(arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn done(site: &Site, verb: &str, arguments: &[&str]) -> String {
    let (code, said) = server(site, verb, arguments);
    assert_eq!(code, Some(0), "{verb} {arguments:?}: {said}");
    said
}

#[track_caller]
fn refused(site: &Site, verb: &str, arguments: &[&str], sentence: &str) {
    let (code, said) = server(site, verb, arguments);
    assert_ne!(code, Some(0), "{verb} {arguments:?}: {said}");
    assert!(said.contains(sentence), "{sentence:?} is not in: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// A line of a report.
fn told(report: &str, what: &str) -> String {
    let begin = format!("{what} ");
    let line = report.lines().find(|line| line.starts_with(&begin));
    line.unwrap_or_else(|| panic!("{what} is not in {report}"))[what.len()..].trim().to_owned()
}

fn file(home: &Home, name: &str) -> String {
    home.places().dir.join(name).display().to_string()
}

/// `init --join --request` at a new site: the file, and its fingerprint.
fn request(home: &Home) -> (String, String) {
    let out = file(home, "join.request");
    let so_pin = home.places().so_pin.display().to_string();
    let create = ["--create-token", "--so-pin-file", &so_pin];
    let arguments = [&["--join", "--request", &out][..], &create].concat();
    let report = done(home, "init", &arguments);
    (out, told(&report, "fingerprint"))
}

fn trust(home: &Home, request: &str, fingerprint: &str) -> (Option<i32>, String) {
    let so_pin = home.places().so_pin.display().to_string();
    let arguments = ["--request", request, "--fingerprint", fingerprint, "--so-pin-file", &so_pin];
    server(home, "trust-peer", &arguments)
}

fn tool(tool: &AmiTool, arguments: &[&str]) -> (Option<i32>, String) {
    let output = tool.run(arguments, "").unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// `site enrol`, by two people if it comes to that.
fn enrol(home: &Home, request: &str, fingerprint: &str, more: &[&str]) -> (Option<i32>, String) {
    let out = file(home, "bundle");
    let (admin, approver) = (home.ami_tool(Role::AmiAdmin), home.ami_tool(Role::Approver));
    let all = ["site", "enrol", "--request", request, "--fingerprint", fingerprint, "--out", &out];
    let arguments = [&all[..], more].concat();
    let (code, said) = tool(&admin, &arguments);
    let Some((_, rest)) = said.split_once("ami-tool approvals approve ") else {
        return (code, said);
    };
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let (listed, text) = tool(&approver, &["approvals", "list"]);
    assert_eq!(listed, Some(0), "{text}");
    assert!(text.contains("enrol: join request of site"), "{text}");
    assert_eq!(tool(&approver, &["approvals", "approve", &number, "--yes"]).0, Some(0));
    tool(&admin, &arguments)
}

async fn rows(home: &Home, query: &'static str) -> Vec<Vec<u8>> {
    let url = format!("sqlite://{}", home.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

const HEADS: &str = "SELECT CAST(block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count \
                     || '/' || hex(digest) || '/' || hex(mac) AS BLOB) FROM blocks ORDER BY block";
const SEALS: &str = "SELECT sealed FROM block_seals ORDER BY block, secret_version";

/// What replication will do: blocks, records and index as they are.
async fn carry(from: &Home, to: &Home) {
    let url = format!("sqlite://{}", to.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let theirs = from.places().data.join("kms.db").display().to_string();
    sqlx::query("ATTACH DATABASE ? AS theirs").bind(theirs).execute(&mut database).await.unwrap();
    for statement in [
        "UPDATE main.blocks SET (epoch, sequence, count, digest, mac) = (SELECT epoch, sequence, count, digest, mac \
         FROM theirs.blocks AS it WHERE it.block = main.blocks.block)",
        "INSERT INTO main.records SELECT * FROM theirs.records",
        "INSERT INTO main.meters SELECT * FROM theirs.meters",
        "INSERT INTO main.key_fingerprints SELECT * FROM theirs.key_fingerprints",
    ] {
        sqlx::query(statement).execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
}

async fn hes(home: &Home) -> KmsClient {
    let config = ClientConfig::load(&home.client_toml(Role::Dev)).unwrap();
    KmsClient::connect(config).await.unwrap()
}

#[tokio::test]
async fn a_site_joins_with_keys_of_its_own_and_opens_what_the_first_one_wraps() {
    let (first, second) = (first(), second("site-b", None));
    let running = first.start().unwrap();
    add(&hes(&first).await, &[line(1), line_in_hsm(2)]).await;
    let heads_at_first = rows(&first, HEADS).await;

    let (asked, fingerprint) = request(&second);
    let text = fs::read_to_string(&asked).unwrap();
    assert!(text.starts_with("AMI KEY MANAGEMENT: REQUEST TO JOIN A KEY DOMAIN\nsite: site-b\n"));
    // The same once more: nothing is made anew.
    let again = done(&second, "init", &["--join", "--request", &asked]);
    assert_eq!(told(&again, "fingerprint"), fingerprint);
    assert_eq!(fs::read_to_string(&asked).unwrap(), text);

    // Not before the security officer was there, and not with another fingerprint.
    let (code, said) = enrol(&first, &asked, &fingerprint, &[]);
    assert_ne!(code, Some(0));
    assert!(said.contains("run `kms-server trust-peer`"), "{said}");
    let wrong = format!("{}{}", &fingerprint[..fingerprint.len() - 1], "g").replace('g', "0");
    let wrong = if wrong == fingerprint { wrong.replace('0', "1") } else { wrong };
    let (code, said) = trust(&first, &asked, &wrong);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("another one was confirmed"), "{said}");
    assert!(enrol(&first, &asked, &wrong, &[]).1.contains("not the one that was confirmed"));
    let altered = file(&first, "altered.request");
    fs::write(&altered, text.replacen("site: site-b", "site: site-c", 1)).unwrap();
    assert!(
        trust(&first, &altered, &fingerprint).1.contains("the header of the file does not say")
    );
    let (code, said) = trust(&first, &asked, &fingerprint);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("site-b, which wants to be ODD"), "{said}");
    assert!(trust(&first, &asked, &fingerprint).1.contains("trusted already"));

    let (code, said) = enrol(&first, &asked, &fingerprint, &[]);
    assert_eq!(code, Some(0), "{said}");
    let (bundle, confirmed) = (file(&first, "bundle"), told(&said, "fingerprint"));
    refused_bundles(&second, &bundle, &confirmed);
    let join = ["--join", "--bundle", &bundle, "--fingerprint", &confirmed];
    let report = done(&second, "init", &join);
    assert!(report.contains("site-a (EVEN)") && report.contains("key blocks"), "{report}");

    // The same domain; a founder that had written nothing yet would have the very same heads.
    let heads = rows(&second, HEADS).await;
    assert_eq!(heads.len(), heads_at_first.len());
    let untouched = heads.iter().zip(&heads_at_first).filter(|(ours, theirs)| ours == theirs);
    assert_eq!(
        untouched.count(),
        heads.len() - 2,
        "all but the two blocks that have a meter by now"
    );
    // Each site seals for itself.
    let (ours, theirs) = (rows(&second, SEALS).await, rows(&first, SEALS).await);
    assert!(ours.iter().all(|seal| !theirs.contains(seal)));

    assert!(running.stop().unwrap().success());
    carry(&first, &second).await;
    let running = second.start().unwrap();
    let client = hes(&second).await;
    for n in [1, 2] {
        assert_eq!(client.decrypt(&apdu(push(n))).await.unwrap().verdict(), Verdict::Ok, "{n}");
    }
    assert!(running.stop().unwrap().success());
    done(&second, "check-config", &[]);
    done(&second, "probe-hsm", &[]);
    // It has joined. A replay answers nothing, with its database and without.
    refused(&second, "init", &join, "a site joins once");
    refused(&second, "init", &["--join", "--request", &asked], "a site joins once");
    let database = second.places().data.join("kms.db");
    fs::rename(&database, database.with_extension("away")).unwrap();
    refused(&second, "init", &join, "this site asks for nothing, or has joined already");
    refused(&second, "init", &["--join", "--request", &asked], "the token has these keys already");
}

/// What is not the bundle that this site waits for is refused by name, and nothing of it is used.
fn refused_bundles(second: &Home, bundle: &str, confirmed: &str) {
    let text = fs::read_to_string(bundle).unwrap();
    let other = confirmed.replace(['a', '1'], "0");
    let join = |path: &str, fingerprint: &str, sentence: &str| {
        let arguments = ["--join", "--bundle", path, "--fingerprint", fingerprint];
        refused(second, "init", &arguments, sentence);
    };
    join(bundle, &other, "nothing of it was used");
    let changed = file(second, "changed.bundle");
    let middle = text.len() / 2;
    for (at, sentence) in [
        (0, "it is not the file of an enrolment bundle"),
        (60, "the header of the file does not say what is below it"),
        (middle, "does not verify"),
    ] {
        let mut bytes = text.clone().into_bytes();
        // One bit; digits stay digits, and no line ends elsewhere.
        let at = (at..).find(|at| bytes[*at].is_ascii_alphanumeric()).unwrap();
        bytes[at] ^= 1;
        if bytes[at].is_ascii_hexdigit() || at < 100 {
            fs::write(&changed, bytes).unwrap();
            join(&changed, confirmed, sentence);
        }
    }
    let (all_but_the_last_line, _) = text.trim_end().rsplit_once('\n').unwrap();
    fs::write(&changed, format!("{all_but_the_last_line}\n")).unwrap();
    join(&changed, confirmed, "it is no enrolment bundle of this version");
    let third = self::second("site-c", None);
    let (asked, fingerprint) = request(&third);
    // Made for somebody else.
    let arguments = ["--join", "--bundle", bundle, "--fingerprint", confirmed];
    refused(&third, "init", &arguments, "the bundle answers another request");
    // The joining site's own request, altered on its disk: what the token signed counts.
    let kept = third.places().data.join("join-request");
    assert_eq!(fs::read_to_string(&kept).unwrap(), fs::read_to_string(&asked).unwrap());
    fs::write(&kept, fs::read_to_string(&kept).unwrap().replacen("site-c", "site-d", 1)).unwrap();
    refused(&third, "init", &arguments, "the header of the file does not say what is below it");
    assert_eq!(fingerprint.split(' ').count(), 16);
}

#[tokio::test]
async fn a_site_that_is_known_is_enrolled_anew_only_where_people_say_so() {
    let first = first();
    let running = first.start().unwrap();
    let site = |name: &str| {
        let home = second(name, None);
        let (asked, fingerprint) = request(&home);
        assert_eq!(trust(&first, &asked, &fingerprint).0, Some(0));
        (home, asked, fingerprint)
    };
    let (lost, asked, fingerprint) = site("site-b");
    assert_eq!(enrol(&first, &asked, &fingerprint, &[]).0, Some(0));
    // An answer that was lost is asked for again.
    let (code, said) = enrol(&first, &asked, &fingerprint, &[]);
    assert_eq!(code, Some(0), "{said}");
    drop(lost);
    let (rebuilt, asked, fingerprint) = site("site-b");
    let (code, said) = enrol(&first, &asked, &fingerprint, &[]);
    assert_ne!(code, Some(0));
    assert!(said.contains("is enrolled with other keys"), "{said}");
    let (code, said) = enrol(&first, &asked, &fingerprint, &["--replace"]);
    assert_eq!(code, Some(0), "{said}");
    let bundle = file(&first, "bundle");
    let confirmed = told(&said, "fingerprint");
    done(&rebuilt, "init", &["--join", "--bundle", &bundle, "--fingerprint", &confirmed]);
    assert_eq!(rows(&first, "SELECT body FROM peers").await.len(), 1);
    // A domain has one site of each parity, whatever it is called.
    let (_other, asked, fingerprint) = site("site-c");
    let (code, said) = enrol(&first, &asked, &fingerprint, &["--replace"]);
    assert_ne!(code, Some(0));
    assert!(said.contains("the site \"site-b\" (ODD) is enrolled"), "{said}");
    // All of it is in the log, the refusals too.
    let auditor = first.ami_tool(Role::Auditor);
    let (code, events) = tool(&auditor, &["audit", "list", "--json"]);
    assert_eq!(code, Some(0), "{events}");
    let of_enrolment = events.matches("Site/EnrolPeer").count();
    assert!(of_enrolment >= 5, "{of_enrolment} in {events}");
    assert!(events.contains("PEER_EXISTS"), "{events}");
    assert!(running.stop().unwrap().success());
}

#[tokio::test]
async fn a_ceremony_that_is_killed_at_any_step_goes_on() {
    let first = first();
    let running = first.start().unwrap();
    let second = second("site-b", Some(fault_module::library()));
    let so_pin = second.places().so_pin.display().to_string();
    let asked = file(&second, "join.request");
    let create = ["--join", "--request", &asked, "--create-token", "--so-pin-file", &so_pin];
    // Pairs that are not there yet are made for a trial, a ceremony pair too; then the site's own, one after the
    // other: killed before each of them.
    for after in [4, 5, 4, 3] {
        second.faults().set(&format!("C_GenerateKeyPair exit=1 after={after}\n")).unwrap();
        let (code, said) = server(&second, "init", &create);
        assert_ne!(code, Some(0), "not killed after {after}: {said}");
        assert!(!PathBuf::from(&asked).exists());
    }
    second.faults().clear().unwrap();
    let report = done(&second, "init", &create);
    let fingerprint = told(&report, "fingerprint");
    assert_eq!(trust(&first, &asked, &fingerprint).0, Some(0));
    let (code, said) = enrol(&first, &asked, &fingerprint, &[]);
    assert_eq!(code, Some(0), "{said}");
    let (bundle, confirmed) = (file(&first, "bundle"), told(&said, "fingerprint"));
    let join = ["--join", "--bundle", &bundle, "--fingerprint", &confirmed];
    let (mut killed, mut founded) = (0, None);
    for rule in [
        "C_UnwrapKey exit=1 after=0",
        "C_UnwrapKey exit=1 after=1",
        "C_UnwrapKey exit=1 after=2",
        "C_UnwrapKey exit=1 after=3",
        "C_DestroyObject exit=1 after=3",
        "C_DestroyObject exit=1 after=4",
        "C_DestroyObject exit=1 after=5",
        "C_Encrypt exit=1 after=0",
        "C_Decrypt exit=1 after=20",
        "C_Sign exit=1 after=0",
        "* exit=1 after=200",
        "* exit=1 after=1000",
        "* exit=1 after=4000",
    ] {
        second.faults().set(&format!("{rule}\n")).unwrap();
        let (code, said) = server(&second, "init", &join);
        // More calls than that are not made.
        if code == Some(0) {
            founded = Some(said);
            break;
        }
        killed += 1;
        assert!(
            !said.contains("is left") && !said.contains("these keys already"),
            "{rule}: {said}"
        );
    }
    second.faults().clear().unwrap();
    println!("killed {killed} times at the second step");
    assert!(killed >= 10, "{killed}");
    let report = founded.unwrap_or_else(|| done(&second, "init", &join));
    assert!(report.contains("site-a (EVEN)"), "{report}");
    assert_eq!(rows(&second, HEADS).await, rows(&first, HEADS).await);
    assert!(running.stop().unwrap().success());
    done(&second, "check-config", &[]);
}
