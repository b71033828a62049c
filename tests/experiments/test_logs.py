import pytest

from ssm_metarl_gym.experiments.logs import KeepingCSV, make_logger

COLUMN = "time/total_timesteps"


def test_rows_up_to_the_checkpoint_stay_whatever_columns_come(tmp_path):
    path = tmp_path / "progress.csv"
    text = "time/total_timesteps,a\n10,1.5\n20,\n30,3\n4"
    path.write_text(text)
    log = KeepingCSV(path, COLUMN, 20)
    assert path.read_text() == "time/total_timesteps,a\n10,1.5\n20,\n"
    log.write({"time/total_timesteps": 25, "b": 7}, {"time/total_timesteps": (), "b": ()})
    log.close()
    assert path.read_text() == "time/total_timesteps,a,b\n10,1.5,\n20,,\n25,,7\n"


@pytest.mark.parametrize("torn", ["", "5", "5,1,2", ",1"])
def test_a_row_that_was_written_in_part_is_left_out(torn, tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text(f"time/total_timesteps,a\n10,1.5\n{torn}\n")
    KeepingCSV(path, COLUMN, 20).close()
    assert path.read_text() == "time/total_timesteps,a\n10,1.5\n"


@pytest.mark.parametrize("text", [None, "", "time/total_timesteps\n30\n"])
def test_without_such_rows_it_begins_anew(text, tmp_path):
    path = tmp_path / "progress.csv"
    if text is not None:
        path.write_text(text)
    log = KeepingCSV(path, COLUMN, 20)
    log.write({"time/total_timesteps": 25}, {"time/total_timesteps": ()})
    log.close()
    assert path.read_text() == "time/total_timesteps\n25\n"


@pytest.mark.parametrize("stdout", [True, False])
def test_a_logger_writes_where_it_is_told_to(tmp_path, capsys, stdout):
    (tmp_path / "progress.csv").write_text(f"{COLUMN}\n10\n30\n")
    logger = make_logger(tmp_path, COLUMN, 20, stdout=stdout)
    logger.record(COLUMN, 25)
    logger.dump(25)
    logger.close()
    assert (tmp_path / "progress.csv").read_text() == f"{COLUMN}\n10\n25\n"
    assert ("total_timesteps | 25" in capsys.readouterr().out) == stdout
