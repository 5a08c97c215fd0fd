from bert_course.cli import main

raise SystemExit(main())
