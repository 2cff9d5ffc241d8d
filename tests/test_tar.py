"""The command line of tar."""

from btw_backup.programs.tar import Source, tar_command


class TestTarCommand:
    def test_directory(self) -> None:
        argv = tar_command(Source("/srv", "", (), (), False))
        assert argv[0] == "tar" and argv[-1] == "."
        assert {
            "--create",
            "--format=posix",
            "--sort=name",
            "--acls",
            "--xattrs",
            "--xattrs-include=*",
        } < set(argv)
        assert "--exclude-tag=NOBACKUP-TAG" in argv and "--one-file-system" not in argv
        assert not [argument for argument in argv if argument.startswith("--exclude=")]

    def test_single_file(self) -> None:
        assert tar_command(Source("/srv", "-x", (), (), False))[-1] == "./-x"

    def test_one_file_system(self) -> None:
        assert "--one-file-system" in tar_command(Source("/srv", "", (), (), True))

    def test_what_is_left_out_is_literal_and_what_is_excluded_is_a_pattern(self) -> None:
        argv = tar_command(Source("/srv", "", ("a*b", "c"), ("*.o",), False))
        ordered = ["--anchored", "--no-wildcards", "--exclude=./a*b", "--exclude=./c"]
        ordered += ["--no-anchored", "--wildcards", "--exclude=*.o"]
        assert [argument for argument in argv if argument in ordered] == ordered
