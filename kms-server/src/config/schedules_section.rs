//! `[[rotation.schedules]]`: campaigns that begin by themselves.

use serde::Deserialize;

use super::error::ConfigError;
use crate::lifecycle::{Schedule, Selection};
use kms_core::{
    AssociationForm, Carrier, KeyKind, Numbered as _, SecuritySetup,
    campaign::{is_name, policy::Policy},
};

/// Bytes of a schedule's name: behind it comes the day.
const NAME_MAX: usize = 48;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleSection {
    name: String,
    kinds: Vec<String>,
    #[serde(default)]
    older_than_days: u32,
    #[serde(default)]
    compromised: bool,
    #[serde(default)]
    profile: String,
    #[serde(default)]
    security_setup: u8,
    class_version: Option<u8>,
    carrier_setup: Option<u8>,
    #[serde(default)]
    carrier_client: u16,
    #[serde(default)]
    rate_per_hour: u32,
    exposure_cap: Option<u32>,
    canaries: Option<u32>,
    error_budget_permille: Option<u32>,
}

impl ScheduleSection {
    pub(super) fn all(sections: Vec<Self>) -> Result<Vec<Schedule>, ConfigError> {
        let mut all: Vec<Schedule> = Vec::with_capacity(sections.len());
        for section in sections {
            let schedule = section.read()?;
            if all.iter().any(|it| it.name == schedule.name) {
                return Err(refused(&schedule.name, "another one has that name"));
            }
            all.push(schedule);
        }
        Ok(all)
    }

    fn read(self) -> Result<Schedule, ConfigError> {
        let name = self.name;
        if !is_name(&name) || name.len() > NAME_MAX || name.contains('.') {
            let problem = "a name is 1 to 48 letters, digits, dashes and underscores";
            return Err(refused(&name, problem));
        }
        if self.older_than_days == 0 && !self.compromised {
            let problem = "say when meters are due: `older_than_days`, `compromised` or both in two schedules";
            return Err(refused(&name, problem));
        }
        let kinds = self.kinds.iter().map(|kind| KeyKind::from_word(kind));
        let kinds: Option<Vec<KeyKind>> = kinds.collect();
        let kinds = kinds.ok_or_else(|| refused(&name, "`kinds` are \"GUEK\", \"GAK\" or both"))?;
        let setup = SecuritySetup(self.security_setup);
        let over = self.carrier_setup.map_or(setup, SecuritySetup);
        let default = Policy::default();
        let policy = Policy {
            kinds,
            setup,
            class_version: self.class_version.unwrap_or(default.class_version),
            carrier: Carrier {
                setup: over,
                client: self.carrier_client,
                form: AssociationForm::default(),
            },
            rate_per_hour: self.rate_per_hour,
            exposure_cap: self.exposure_cap.unwrap_or(default.exposure_cap),
            canaries: self.canaries.unwrap_or(default.canaries),
            error_budget_permille: self
                .error_budget_permille
                .unwrap_or(default.error_budget_permille),
            ..default
        };
        policy.check().map_err(|why| refused(&name, &why.to_string()))?;
        let selection = Selection {
            profile: self.profile,
            older_than_days: self.older_than_days,
            compromised: self.compromised,
            ..Selection::default()
        };
        Ok(Schedule { name, policy, selection })
    }
}

fn refused(name: &str, problem: &str) -> ConfigError {
    ConfigError::Schedule { name: name.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Schedule, String> {
        let section: ScheduleSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.read().map_err(|error| error.to_string())
    }

    #[test]
    fn a_schedule_says_which_keys_and_when_they_are_due() {
        let schedule = read(
            "name = \"yearly\"\nkinds = [\"GUEK\", \"GAK\"]\nolder_than_days = 365\ncarrier_client = 1\nexposure_cap = 20",
        )
        .unwrap();
        assert_eq!(schedule.selection.older_than_days, 365);
        assert_eq!(schedule.policy.kinds, [KeyKind::Guek, KeyKind::Gak]);
        assert_eq!((schedule.policy.exposure_cap, schedule.policy.carrier.client), (20, 1));
    }

    #[test]
    fn a_schedule_that_never_ends_or_that_is_none_is_refused() {
        for (text, said) in [
            ("name = \"x\"\nkinds = [\"GUEK\"]", "older_than_days"),
            ("name = \"x.y\"\nkinds = [\"GUEK\"]\ncompromised = true", "48 letters"),
            ("name = \"x\"\nkinds = [\"KEK\"]\ncompromised = true", "GUEK and GAK"),
            ("name = \"x\"\nkinds = [\"HAK\"]\ncompromised = true", "kinds"),
            ("name = \"x\"\nkinds = []\ncompromised = true", "kinds"),
        ] {
            assert!(read(text).unwrap_err().contains(said), "{text}");
        }
    }
}
