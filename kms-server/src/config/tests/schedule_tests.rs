//! The example of a scheduled rotation.

use super::*;

/// As it stands in the example, behind its head.
fn example() -> &'static str {
    let (_, schedule) = EXAMPLE.split_once("#[[rotation.schedules]]").unwrap();
    schedule.split_once("\n\n").unwrap().0
}

/// All of the example but that.
pub(super) fn all_else() -> String {
    EXAMPLE.replace(example(), "")
}

#[test]
fn the_example_of_a_schedule_is_one() {
    let (folder, example) = (Folder::new(), format!("#[[rotation.schedules]]{}", example()));
    let config = folder.with(&example, &example.replace("\n#", "\n").replacen('#', "", 1));
    let schedules = config.unwrap().schedules;
    assert_eq!(schedules.len(), 1);
    let schedule = &schedules[0];
    assert_eq!((schedule.name.as_str(), schedule.selection.older_than_days), ("yearly", 365));
}
