import java.io.FileInputStream;
import java.io.InputStream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import java.util.zip.ZipInputStream;

/** Reads every entry of an archive by both of Java's readers; prints how many there were. */
public class ReadZip {
    public static void main(String[] arguments) throws Exception {
        int streamed = 0, listed = 0;
        try (ZipInputStream stream = new ZipInputStream(new FileInputStream(arguments[0]))) {
            while (stream.getNextEntry() != null) {
                stream.readAllBytes();
                streamed++;
            }
        }
        try (ZipFile file = new ZipFile(arguments[0])) {
            for (ZipEntry entry : java.util.Collections.list(file.entries())) {
                try (InputStream content = file.getInputStream(entry)) {
                    content.readAllBytes();
                }
                listed++;
            }
        }
        System.out.println(streamed + " " + listed);
    }
}
