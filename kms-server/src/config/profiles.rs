//! Device profiles: one TOML file each, called by the profile's name.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    error::ConfigError,
    values::{absolute, seconds},
};
use kms_core::{
    Numbered as _, ProfileName,
    numbered::Expected,
    profile::{CountersOnNewKey, DeviceProfile, FloorRule, HlsMechanism2, Profiles},
};

/// Where the package puts them. A machine that has none has no profiles.
const DIRECTORY: &str = "/etc/ami/profiles";

/// The longest file. A profile is a few lines.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ProfilesSection {
    dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FloorsSection {
    flush_interval_s: u64,
}

impl Default for FloorsSection {
    fn default() -> Self {
        Self { flush_interval_s: 10 }
    }
}

impl FloorsSection {
    /// How often floors are stored.
    pub(super) fn flush_interval(&self) -> Result<Duration, ConfigError> {
        seconds("receive_floors.flush_interval_s", self.flush_interval_s, 1..=3_600)
    }
}

/// A file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    description: String,
    counters_on_new_key: String,
    largest_gap: Option<u32>,
    hls_mechanism_2: Option<String>,
    #[serde(default)]
    receive_floors: WrittenFloors,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenFloors {
    guek: bool,
    gbek: bool,
    dedicated: bool,
    window: u8,
}

impl ProfilesSection {
    /// All profiles of the directory.
    pub(super) fn read(self) -> Result<Profiles, ConfigError> {
        let said = self.dir.map(|dir| absolute("profiles.dir", dir)).transpose()?;
        let dir = said.clone().unwrap_or_else(|| DIRECTORY.into());
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && said.is_none() => {
                return Ok(Profiles::default());
            }
            entries => entries.map_err(unreadable(&dir))?,
        };
        let mut profiles = Vec::new();
        for entry in entries {
            let path = entry.map_err(unreadable(&dir))?.path();
            if is_profile(&path) {
                profiles.push(read(&path)?);
            }
        }
        Profiles::new(profiles)
            .map_err(|bad| ConfigError::Profile { path: dir, what: bad.to_string() })
    }
}

/// Not what editors and package managers leave beside a file.
fn is_profile(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> ConfigError {
    move |source| ConfigError::ProfileUnreadable { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<DeviceProfile, ConfigError> {
    let bad = |what: String| ConfigError::Profile { path: path.to_owned(), what };
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = ProfileName::new(stem)
        .map_err(|error| bad(format!("{error}: give the file such a name")))?;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable(path))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable(path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(bad("longer than 64 KiB: a profile is a few lines".to_owned()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| bad("not UTF-8 text: save it as plain text".to_owned()))?;
    parse(name, text.strip_prefix('\u{FEFF}').unwrap_or(&text)).map_err(bad)
}

/// The profile in a file of this name; else one sentence: the line, what is wrong, what to do.
fn parse(name: ProfileName, text: &str) -> Result<DeviceProfile, String> {
    let written: Written = toml::from_str(text).map_err(|error| {
        let (line, key, message) = ConfigError::at(text, &error);
        format!("line {line}{key}: {message}; see the profiles that come with the service for what may stand there")
    })?;
    let Written { description, counters_on_new_key, largest_gap, hls_mechanism_2, receive_floors } =
        written;
    let line = |key: &str| {
        let is_it = |line: &str| line.trim_start().starts_with(key);
        text.lines().position(is_it).map_or(String::new(), |at| format!("line {}, ", at + 1))
    };
    let most = DeviceProfile::DESCRIPTION_MAX;
    let printable = !description.trim().is_empty() && !description.contains(char::is_control);
    if !printable || description.len() > most {
        let at = line("description");
        return Err(format!("{at}`description`: set it to one line of at most {most} bytes"));
    }
    let counters = CountersOnNewKey::from_word(&counters_on_new_key).ok_or_else(|| {
        let at = line("counters_on_new_key");
        format!("{at}`counters_on_new_key`: {}", Expected::<CountersOnNewKey>::new())
    })?;
    let hls_mechanism_2 = match hls_mechanism_2 {
        None => HlsMechanism2::default(),
        Some(word) => HlsMechanism2::from_word(&word).ok_or_else(|| {
            let at = line("hls_mechanism_2");
            format!("{at}`hls_mechanism_2`: {}", Expected::<HlsMechanism2>::new())
        })?,
    };
    let WrittenFloors { guek, gbek, dedicated, window } = receive_floors;
    let floors = FloorRule { guek, gbek, dedicated, window };
    if window > FloorRule::WINDOW_MAX {
        let (at, most) = (line("window"), FloorRule::WINDOW_MAX);
        return Err(format!("{at}`window` is {window}: set it to 0 to {most}"));
    }
    if window > 0 && floors.is_off() {
        let at = line("window");
        return Err(format!(
            "{at}`window` is {window}, and no key has a floor: set guek, gbek or dedicated to true, or leave it out"
        ));
    }
    if largest_gap == Some(0) {
        let at = line("largest_gap");
        return Err(format!(
            "{at}`largest_gap` is 0, and then nothing could be sent: the least is 1"
        ));
    }
    Ok(DeviceProfile {
        name,
        description,
        counters_on_new_key: counters,
        largest_gap,
        floors,
        hls_mechanism_2,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<DeviceProfile, String> {
        parse(ProfileName::new("p").unwrap(), text)
    }

    const GOOD: &str = "description = \"d\"\ncounters_on_new_key = \"RESET\"\n";

    #[test]
    fn what_is_wrong_with_a_profile_is_told_with_its_line_and_what_to_do() {
        assert!(parsed(GOOD).is_ok());
        for (text, parts) in [
            ("description = \"d\"\n", &["missing field `counters_on_new_key`"][..]),
            ("description = \"\"\ncounters_on_new_key = \"RESET\"\n", &["line 1", "one line"]),
            (
                "description = \"d\"\n\ncounters_on_new_key = \"reset\"\n",
                &["line 3", "one of RESET KEPT UNKNOWN"],
            ),
            (&format!("{GOOD}hls_mechanism_2 = \"CBC\"\n"), &["line 3", "AES_ECB AES_CBC"]),
            (&format!("{GOOD}largest_gap = 0\n"), &["line 3", "the least is 1"]),
            (&format!("{GOOD}largest_gap = -1\n"), &["line 3", "largest_gap"]),
            (&format!("{GOOD}larges_gap = 1\n"), &["line 3", "unknown field"]),
            (
                &format!("{GOOD}[receive_floors]\nguek = true\nwindow = 65\n"),
                &["line 5", "0 to 64"],
            ),
            (&format!("{GOOD}[receive_floors]\nwindow = 8\n"), &["line 4", "no key has a floor"]),
            (&format!("{GOOD}[receive_floors]\nguek = 1\n"), &["line 4", "guek"]),
            ("description", &["line 1"]),
        ] {
            let said = parsed(text).unwrap_err();
            for part in parts {
                assert!(said.contains(part), "{part:?} is not in: {said}");
            }
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn the_profiles_that_come_with_the_service_are_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/profiles");
        let profiles = ProfilesSection { dir: Some(dir.canonicalize().unwrap()) }.read().unwrap();
        let names: Vec<_> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["dlms", "dlms-udp", "gbcs"]);
        let floors = |name| profiles.floors_of(Some(&ProfileName::new(name).unwrap()));
        assert!(floors("gbcs").is_off() && floors("dlms").keeps(kms_core::KeyKind::Guek));
        assert_eq!((floors("dlms").window, floors("dlms-udp").window), (0, 32));
    }

    #[test]
    fn only_files_called_by_a_name_are_profiles_and_a_directory_that_was_said_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let read = || ProfilesSection { dir: Some(dir.path().to_owned()) }.read();
        for name in [".x.toml", "a.toml~", "a.toml.dpkg-dist", "README"] {
            fs::write(dir.path().join(name), "nonsense").unwrap();
        }
        assert_eq!(read().unwrap(), Profiles::default());
        fs::write(dir.path().join("Kamstrup.toml"), GOOD).unwrap();
        let said = read().unwrap_err().to_string();
        assert!(said.contains("Kamstrup.toml") && said.contains("small letters"), "{said}");
        fs::rename(dir.path().join("Kamstrup.toml"), dir.path().join("k-1.toml")).unwrap();
        assert_eq!(read().unwrap().iter().count(), 1);
        fs::write(dir.path().join("big.toml"), vec![b'#'; 65 << 10]).unwrap();
        assert!(read().unwrap_err().to_string().contains("64 KiB"));
        let gone = ProfilesSection { dir: Some(dir.path().join("gone")) }.read().unwrap_err();
        assert!(gone.to_string().contains("gone"), "{gone}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_profile_parser_panic(text in ".{0,300}") {
            let _ = parsed(&text);
        }

        #[test]
        fn what_a_profile_says_is_what_is_read(
            counters in prop::sample::select(CountersOnNewKey::ALL),
            gap in prop::option::of(1u32..),
            hls in prop::sample::select(HlsMechanism2::ALL),
            (guek, gbek, dedicated) in any::<(bool, bool, bool)>(),
            window in 0u8..80,
        ) {
            let gap_line = gap.map_or(String::new(), |gap| format!("largest_gap = {gap}\n"));
            let text = format!(
                "description = \"d\"\ncounters_on_new_key = \"{counters}\"\n{gap_line}hls_mechanism_2 = \"{hls}\"\n\
                 [receive_floors]\nguek = {guek}\ngbek = {gbek}\ndedicated = {dedicated}\nwindow = {window}\n"
            );
            let off = !(guek || gbek || dedicated);
            match parsed(&text) {
                Ok(profile) => {
                    prop_assert!(window <= 64 && !(off && window > 0));
                    prop_assert_eq!(profile.floors, FloorRule { guek, gbek, dedicated, window });
                    prop_assert_eq!((profile.counters_on_new_key, profile.largest_gap), (counters, gap));
                    prop_assert_eq!(profile.hls_mechanism_2, hls);
                }
                Err(_) => prop_assert!(window > 64 || off && window > 0),
            }
        }
    }
}
